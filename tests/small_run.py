"""The settings of a run of the built-in world that is small in everything and real in everything."""

SMALL_RUN = [
    "tracker=none",
    "cluster.dashboard=false",
    "pool.batch_questions=6",
    "pool.group_size=4",
    # Many small steps: of the ways to a policy that speaks the protocol and answers a fifth, the cheapest.
    "algorithm.warm_start.steps=160",
    "algorithm.warm_start.batch_size=16",
    "algorithm.warm_start.lr=1.0e-2",
    "algorithm.warm_start.warmup_steps=10",
    "data.demonstrations=800",
    "data.train_questions=60",
    "data.eval_questions_per_hop=8",
    "cluster.learner_threads=1",  # two wait for each other where something else runs, and waiting is work
]
