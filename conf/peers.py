"""What other programs' settings are called here, for people who come from them.

``NAMES`` answers a whole key, ``FAMILIES`` a key that starts like one of theirs and means nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from learner.config import CHECKPOINTING, KL, SCHEDULES
from learner.losses.base import ADVANTAGES, AGGREGATIONS, loss_names

STEPS = "algorithm.steps (steps of the learner; there are no epochs)"
CARDS = "cluster=… (python launch.py --help lists them)"
MICROBATCH = "algorithm.microbatch_tokens (tokens, not sequences)"
KL_COEFFICIENT = "algorithm.kl_coefficient (with algorithm.kl=k3; by itself there is no KL term)"
LEARNING_RATE = "algorithm.optimizer.lr"
PER_STEP = "pool.batch_questions"
MINIBATCH = "algorithm.minibatch_questions"
SERVICE = "retrieval.url (with retrieval=http; without it Lucene runs beside the engines)"

NAMES: dict[str, dict[str, str]] = {
    "verl": {
        "actor_rollout_ref.actor.clip_ratio": "algorithm.clip_low and algorithm.clip_high",
        "actor_rollout_ref.actor.clip_ratio_high": "algorithm.clip_high",
        "actor_rollout_ref.actor.clip_ratio_low": "algorithm.clip_low",
        "actor_rollout_ref.actor.fsdp_config.optimizer_offload": "algorithm.optimizer.offload",
        "actor_rollout_ref.actor.grad_clip": "algorithm.optimizer.max_grad_norm",
        "actor_rollout_ref.actor.kl_loss_coef": KL_COEFFICIENT,
        "actor_rollout_ref.actor.kl_loss_type": "algorithm.kl",
        "actor_rollout_ref.actor.loss_agg_mode": "algorithm.aggregation",
        "actor_rollout_ref.actor.optim.lr": LEARNING_RATE,
        "actor_rollout_ref.actor.optim.lr_warmup_steps": "algorithm.optimizer.warmup_steps",
        "actor_rollout_ref.actor.optim.weight_decay": "algorithm.optimizer.weight_decay",
        "actor_rollout_ref.actor.policy_loss.loss_mode": "algorithm.loss",
        "actor_rollout_ref.actor.ppo_epochs": "algorithm.epochs",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": "algorithm.microbatch_tokens",
        "actor_rollout_ref.actor.ppo_micro_batch_size": MICROBATCH,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": MICROBATCH,
        "actor_rollout_ref.actor.ppo_mini_batch_size": MINIBATCH,
        "actor_rollout_ref.actor.use_kl_loss": "algorithm.kl",
        "actor_rollout_ref.model.enable_gradient_checkpointing": "algorithm.gradient_checkpointing",
        "actor_rollout_ref.model.lora_rank": "model.lora_rank",
        "actor_rollout_ref.model.path": "model.path",
        "actor_rollout_ref.rollout.enforce_eager": "cluster.engine.enforce_eager",
        "actor_rollout_ref.rollout.gpu_memory_utilization": "cluster.engine.gpu_memory_utilization",
        "actor_rollout_ref.rollout.max_num_seqs": "cluster.engine.max_num_seqs",
        "actor_rollout_ref.rollout.n": "pool.group_size",
        "actor_rollout_ref.rollout.temperature": "agent.temperature",
        "algorithm.adv_estimator": "algorithm.advantage",
        "algorithm.kl_ctrl.kl_coef": KL_COEFFICIENT,
        "custom_reward_function.name": "reward.outcome (package.module:function)",
        "custom_reward_function.path": "reward.outcome (package.module:function)",
        "data.max_prompt_length": "agent.max_prompt_tokens (of the question; Search-R1's is of the whole episode)",
        "data.max_response_length": "agent.max_response_tokens (of the episode; Search-R1's is agent.max_new_tokens)",
        "data.train_batch_size": PER_STEP,
        "data.train_files": "data.questions",
        "data.val_files": "data.eval_questions",
        "trainer.default_local_dir": "output_dir",
        "trainer.logger": "tracker=…",
        "trainer.n_gpus_per_node": CARDS,
        "trainer.nnodes": CARDS,
        "trainer.project_name": "tracker.project",
        "trainer.resume_from_path": "resume",
        "trainer.resume_mode": "resume",
        "trainer.save_freq": "checkpoints.every",
        "trainer.test_freq": "evaluation.every",
        "trainer.total_epochs": STEPS,
        "trainer.total_training_steps": "algorithm.steps",
    },
    "Search-R1": {
        "actor_rollout_ref.rollout.n_agent": "pool.group_size",
        "data.max_obs_length": "agent.max_passage_chars (characters of a passage)",
        "data.max_start_length": "agent.max_prompt_tokens",
        "max_turns": "agent.max_searches",
        "retriever.topk": "agent.top_k",
        "retriever.url": SERVICE,
    },
    "SkyRL": {
        "data.train_data": "data.questions",
        "data.val_data": "data.eval_questions",
        "environment.skyrl_gym.search.search_url": SERVICE,
        "environment.skyrl_gym.search.topk": "agent.top_k",
        "generator.gpu_memory_utilization": "cluster.engine.gpu_memory_utilization",
        "generator.inference_engine.gpu_memory_utilization": "cluster.engine.gpu_memory_utilization",
        "generator.inference_engine.num_engines": "cluster.rollout_workers",
        "generator.max_turns": "agent.max_searches",
        "generator.n_samples_per_prompt": "pool.group_size",
        "generator.num_inference_engines": "cluster.rollout_workers",
        "generator.sampling_params.max_generate_length": "agent.max_new_tokens",
        "generator.sampling_params.temperature": "agent.temperature",
        "trainer.algorithm.advantage_estimator": "algorithm.advantage",
        "trainer.algorithm.policy_loss_type": "algorithm.loss",
        "trainer.algorithm.kl_loss_coef": KL_COEFFICIENT,
        "trainer.algorithm.tis_imp_ratio_cap": "algorithm.importance_cap",
        "trainer.algorithm.use_kl_loss": "algorithm.kl",
        "trainer.ckpt_interval": "checkpoints.every",
        "trainer.ckpt_path": "output_dir",
        "trainer.epochs": STEPS,
        "trainer.eval_interval": "evaluation.every",
        "trainer.max_ckpts_to_keep": "checkpoints.keep",
        "trainer.max_prompt_length": "agent.max_prompt_tokens",
        "trainer.micro_train_batch_size_per_gpu": MICROBATCH,
        "trainer.policy.model.path": "model.path",
        "trainer.policy.optimizer_config.lr": LEARNING_RATE,
        "trainer.policy.optimizer_config.max_grad_norm": "algorithm.optimizer.max_grad_norm",
        "trainer.policy.optimizer_config.num_warmup_steps": "algorithm.optimizer.warmup_steps",
        "trainer.policy_mini_batch_size": MINIBATCH,
        "trainer.train_batch_size": PER_STEP,
        "trainer.update_epochs_per_batch": "algorithm.epochs",
    },
    "TRL": {
        "adam_beta1": "algorithm.optimizer.betas",
        "adam_beta2": "algorithm.optimizer.betas",
        "adam_epsilon": "algorithm.optimizer.eps",
        "beta": KL_COEFFICIENT,
        "bf16": "model.dtype (bfloat16 or float32)",
        "dataset_name": "data.questions (a file; or data=hotpotqa and others)",
        "epsilon": "algorithm.clip_low",
        "epsilon_high": "algorithm.clip_high",
        "eval_steps": "evaluation.every",
        "gradient_accumulation_steps": MICROBATCH,
        "gradient_checkpointing": "algorithm.gradient_checkpointing",
        "torch_compile": "algorithm.compile",
        "learning_rate": LEARNING_RATE,
        "lora_r": "model.lora_rank",
        "loss_type": "algorithm.loss",
        "importance_sampling_level": "algorithm.loss (gspo has the ratios of sequences)",
        "lr_scheduler_type": "algorithm.optimizer.schedule",
        "max_completion_length": "agent.max_response_tokens",
        "max_grad_norm": "algorithm.optimizer.max_grad_norm",
        "max_prompt_length": "agent.max_prompt_tokens",
        "max_steps": "algorithm.steps",
        "model_name_or_path": "model.path",
        "num_generations": "pool.group_size",
        "num_iterations": "algorithm.epochs",
        "num_train_epochs": STEPS,
        "optim": "algorithm.optimizer.kind (adamw or adamw8bit)",
        "per_device_train_batch_size": f"{PER_STEP} (questions: the completions over num_generations)",
        "report_to": "tracker=…",
        "resume_from_checkpoint": "resume (a checkpoint's folder, or auto)",
        "save_steps": "checkpoints.every",
        "save_total_limit": "checkpoints.keep",
        "scale_rewards": "algorithm.advantage (mean leaves the scaling out)",
        "use_peft": "model.lora_rank (of how many dimensions: 32; 0 trains all weights)",
        "vllm_gpu_memory_utilization": "cluster.engine.gpu_memory_utilization",
        "warmup_steps": "algorithm.optimizer.warmup_steps",
        "weight_decay": "algorithm.optimizer.weight_decay",
    },
    "OpenRLHF": {
        "actor_learning_rate": LEARNING_RATE,
        "advantage_estimator": "algorithm.advantage",
        "eps_clip": "algorithm.clip_low and algorithm.clip_high",
        "generate_max_len": "agent.max_new_tokens",
        "init_kl_coef": KL_COEFFICIENT,
        "max_epochs": "algorithm.epochs",
        "micro_train_batch_size": MICROBATCH,
        "n_samples_per_prompt": "pool.group_size",
        "num_episodes": STEPS,
        "pretrain": "model.path",
        "prompt_data": "data.questions",
        "prompt_max_len": "agent.max_prompt_tokens",
        "rollout_batch_size": PER_STEP,
        "save_path": "output_dir",
        "train_batch_size": f"{MINIBATCH} (questions: the samples over n_samples_per_prompt)",
        "use_wandb": "tracker=wandb",
        "vllm_num_engines": "cluster.rollout_workers",
    },
    "": {  # nobody's in particular
        "agent.max_turns": "agent.max_searches",
        "algorithm.batch_size": PER_STEP,
        "algorithm.beta": KL_COEFFICIENT,
        "algorithm.learning_rate": LEARNING_RATE,
        "agent.top_p": "agent.temperature (there is no nucleus: the learner computes the whole distribution)",
        "batch_size": PER_STEP,
        "dataset": "data.questions",
        "epochs": STEPS,
        "eval_every": "evaluation.every",
        "gpus": CARDS,
        "lr": LEARNING_RATE,
        "model_name": "model=… or model.path",
        "model_path": "model.path",
        "n_gpus": CARDS,
        "num_epochs": STEPS,
        "num_gpus": CARDS,
        "num_steps": "algorithm.steps",
        "output": "output_dir",
        "pool.batch_size": PER_STEP,
        "save_every": "checkpoints.every",
        "retrieval.k": "agent.top_k",
        "retrieval.top_k": "agent.top_k",
        "retrieval.topk": "agent.top_k",
        "reward.evidence_match": "data.evidence_match",
        "temperature": "agent.temperature",
        "topk": "agent.top_k",
        "train_steps": "algorithm.steps",
        "wandb_project": "tracker.project",
    },
}
"""Program, its name for a setting, ours."""

CHOICES: dict[str, Callable[[], Sequence[str]]] = {
    "algorithm.advantage": lambda: ADVANTAGES,
    "algorithm.aggregation": lambda: AGGREGATIONS,
    "algorithm.gradient_checkpointing": lambda: CHECKPOINTING,
    "algorithm.kl": lambda: KL,
    "algorithm.loss": loss_names,
    "algorithm.optimizer.schedule": lambda: SCHEDULES,
}
"""Settings whose values have names, which are not theirs."""

FAMILIES = {
    "actor_rollout_ref.": "verl",
    "critic.": "verl",
    "custom_reward_function.": "verl",
    "environment.": "SkyRL",
    "generator.": "SkyRL",
    "retriever.": "Search-R1",
    "reward_model.": "verl",
    "trainer.": "verl's or SkyRL",
}


def answer(key: str, value: str = "") -> str | None:
    """A phrase that says whose name ``key`` is and what is here in its place; None if it is nobody's."""
    for program, names in NAMES.items():
        if key in names:
            whose = f"is {program}'s name" if program else "is not a setting"
            name, _, remark = names[key].partition(" ")
            valid = CHOICES[name]() if name in CHOICES else ()
            if valid and value not in valid and not remark:
                return f"{key} {whose}; here it is {name} (one of {', '.join(valid)})"
            given = f"={value}" if value and "=" not in name and not remark else ""
            return f"{key} {whose}; here it is {names[key]}{given}"
    return None


def family(key: str) -> str | None:
    """The program whose keys start like ``key``."""
    return next((program for start, program in FAMILIES.items() if key.startswith(start)), None)
