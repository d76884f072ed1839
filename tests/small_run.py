"""The settings of a run of the built-in world that is small in everything and real in everything."""

SMALL_RUN = [
    "tracker=none",
    "cluster.dashboard=false",
    "pool.batch_questions=6",
    "pool.group_size=4",
    "algorithm.warm_start.steps=120",
    "data.demonstrations=800",
    "data.train_questions=60",
    "data.eval_questions_per_hop=8",
    "cluster.learner_threads=1",  # two wait for each other where something else runs, and waiting is work
]
