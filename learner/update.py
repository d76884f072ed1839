"""One learner step: groups in, updated parameters and a report out.

    groups ──► batch ──► minibatches ──► for each: rows ──► forward, loss, backward ──► clip ──► AdamW

The old log-probabilities are the learner's own from before the step. With a single update they are
those of the training forward itself; only with several is a pass without gradients spent on them.

Several learners (``learner/ranks.py``) do the same with the same batch: each takes its share of the rows, and gradients
and figures are added up between backward and clip. Nothing of a microbatch is read on the host before that.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent.errors import Fault
from agent.groups import Group
from agent.readable import json_of
from agent.records import FloatArray
from learner.batch import Batch, Minibatch, Sample, make_batch, minibatches
from learner.config import SHIFTED_MISMATCH, AlgorithmConfig
from learner.loss import LossMetrics, Mismatch, Tally, loss_input, policy_loss, try_loss
from learner.memory import named_knobs
from learner.optimizer import ClippedAdamW, schedule_factor
from learner.packing import PackedRow, pack_rows, room, shares
from learner.policy import Policy
from learner.ranks import ALONE, Ranks
from learner.report import UpdateReport

MAX_SKIPPED_IN_A_ROW = 3

NAN = float("nan")
UNKNOWN: FloatArray = np.zeros(0, np.float32)
"""Of a sample in another rank's rows."""


class Updater:
    """Runs the algorithm on a policy; owns the optimizer and what has to survive a restart."""

    def __init__(
        self,
        policy: Policy,
        config: AlgorithmConfig,
        *,
        rng: np.random.Generator,
        fault_folder: Path,
        temperature: float = 1.0,
        reference: Policy | None = None,
        ranks: Ranks = ALONE,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """``rng`` orders the later epochs and seeds stochastic rounding; the engine samples at ``temperature``.

        ``fault_folder`` receives the batch that raised a ``Fault``. ``reference`` is the frozen policy
        of the KL term; ``ValueError`` if ``config.kl`` asks for one and it is None. ``UserError`` if the loss is the
        user's own and fails on a row (``try_loss``). Every rank of ``ranks`` has an
        updater like this one, which begins with the same weights and the same ``rng``. ``progress`` is called after
        each microbatch.
        """
        if config.kl != "none" and reference is None:
            raise ValueError(f"algorithm.kl={config.kl} needs a reference policy")
        self.policy = policy
        self.config = config
        self.loss = config.build_loss()
        try_loss(self.loss, config, policy.device)
        self.temperature = temperature
        self.reference = reference if config.kl != "none" else None
        self.fault_folder = fault_folder
        self.ranks = ranks
        self.optimizer = ClippedAdamW(policy.parameters(), config.optimizer, rng=rng, ranks=ranks)
        self.progress = progress
        self._rng = rng
        self._skipped_in_a_row = 0
        self.changed = False
        """Whether the newest update has come to an optimizer step."""

    def update(self, groups: Sequence[Group], *, step: int, version: int) -> UpdateReport:
        """Runs every minibatch of every epoch over ``groups``.

        ``step`` (from 0) sets the learning rate, ``version`` is that of the current parameters: only
        tokens that it sampled tell how far engine and learner are apart.

        Raises ``Fault`` before the first update when engine and learner don't hold the same weights
        (``algorithm.mismatch_limit``), after three updates in a row without a finite loss and gradient (counted
        across steps), naming the file that holds the last batch; and when the GPU's memory is full, naming what
        would take less.
        """
        batch = make_batch(groups, self.config.choices.advantage)
        longest = max((len(s.token_ids) for s in batch.samples), default=0)
        with named_knobs(f"step {step + 1}", self.config, longest=longest, lora=self.policy.adapted, error=Fault):
            return self.run(batch, step=step, version=version)

    def run(self, batch: Batch, *, step: int, version: int) -> UpdateReport:
        """``update`` with a batch that is already made."""
        started = time.perf_counter()
        self.changed = False
        parts = minibatches(batch, self.config, self._rng)
        run = _Run(self, parts, step=step, version=version)
        for minibatch in parts:
            run.take(minibatch)
        self.ranks.check_equal(self.optimizer.parameters, "weights")
        return run.report(time.perf_counter() - started)

    def schedule(self, step: int) -> float:
        """What the learning rate is multiplied with in learner step ``step``, counted from 0."""
        o = self.config.optimizer
        return schedule_factor(o.schedule, step, self.config.steps, o.warmup_steps)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs beside the weights, as ``checkpoint.save_state`` takes it.

        The optimizer's state, the states of ``rng`` and of torch's own generator, and the count of
        skipped updates. The schedule follows from the step alone.
        """
        return {
            "optimizer": self.optimizer.state(),
            "rng": json.dumps(self._rng.bit_generator.state),
            "torch_rng": torch.get_rng_state(),
            "skipped_in_a_row": self._skipped_in_a_row,
        }

    def load_state(self, state: dict[str, Any]) -> str:
        """Continues where ``state`` was taken, bit for bit if the policy's weights are those too.

        Returns what the optimizer keeps otherwise than before; "" if nothing.
        """
        otherwise = self.optimizer.load_state(state["optimizer"])
        self._rng.bit_generator.state = json_of(state["rng"])
        torch.set_rng_state(state["torch_rng"])
        self._skipped_in_a_row = int(state["skipped_in_a_row"])
        return otherwise

    def pack(self, samples: Sequence[Sample]) -> list[PackedRow]:
        """The microbatches of ``samples``, of all ranks."""
        return pack_rows(
            [s.token_ids for s in samples],
            [s.action_mask for s in samples],
            self.config.microbatch_tokens,
            multiple=self.ranks.world,
            families=[s.question for s in samples],
            seen_again=self.policy.seen_again,
        )

    def own(self, rows: Sequence[PackedRow]) -> list[PackedRow]:
        """This rank's share of them, by tokens."""
        where = shares([len(row.token_ids) for row in rows], self.ranks.world)
        return [row for row, rank in zip(rows, where, strict=True) if rank == self.ranks.rank]

    @torch.no_grad()
    def score(
        self, policy: Policy, samples: Sequence[Sample], rows: Sequence[PackedRow] | None = None
    ) -> list[FloatArray]:
        """Each sample's (A,) action-token log-probabilities under ``policy``. No other rank has a part in it.

        With ``rows`` of these samples, of those in the rows; the others' are ``UNKNOWN``.
        """
        out = [UNKNOWN] * len(samples)
        for row in self.pack(samples) if rows is None else rows:
            scored = policy.logprobs(row, temperature=self.temperature, chunk=self.config.logits_chunk)
            for member, values in zip(row.members, row.split(scored.values.cpu().numpy()), strict=True):
                out[member] = values
            self.progress()
        return out

    def apply(self, loss: float, minibatch: Minibatch, step: int) -> float | None:
        """Takes the optimizer step and returns the gradient's norm, or None if it had to be skipped."""
        norm = self.optimizer.clip()
        if math.isfinite(loss) and math.isfinite(norm):
            self.changed = True
            self.optimizer.step(self.schedule(step))
            self._skipped_in_a_row = 0
            return norm
        self.optimizer.drop()
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            path = self.fault_folder / f"non-finite-step-{step + 1:06d}.npz"
            if self.ranks.rank == 0:  # all of them have the same
                save_minibatch(path, minibatch)
            raise Fault(
                f"learner: {self._skipped_in_a_row} updates in a row had a loss ({loss}) or gradient ({norm}) "
                f"that isn't finite, last in step {step + 1}; that batch is in {path}"
            )
        return None


class _Run:
    """One call of ``Updater.update``: what is known before the first update, and the running totals."""

    def __init__(self, updater: Updater, parts: Sequence[Minibatch], *, step: int, version: int) -> None:
        self.updater, self.policy, self.config = updater, updater.policy, updater.config
        self.step, self.version = step, version
        self.metrics = LossMetrics()
        self.mismatch = Mismatch()
        self.rows: list[PackedRow] = []
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.entropy = 0.0
        self.room = 0
        self.sequences = self.experts = 0
        self._packed = [updater.pack(part.samples) for part in parts]
        self._compared = False
        """The mismatch is known already, of the whole batch."""
        self.old, self.reference = self._score_before(parts)

    def take(self, minibatch: Minibatch) -> None:
        """One optimizer update."""
        rows = self._packed.pop(0)
        loss = self._backward(minibatch, rows)
        self._check_mismatch()
        self.losses.append(loss)
        norm = self.updater.apply(loss, minibatch, self.step)
        if norm is not None:
            self.norms.append(norm)

    def _check_mismatch(self) -> None:
        """Raises ``Fault`` if a float32 engine has sampled from other weights than the learner's.

        One that isn't a number is the learner's own trouble, which ``apply`` deals with.
        """
        limit = self.config.mismatch_limit
        if not limit or self.policy.model.dtype == torch.bfloat16 or not self.mismatch.mean > limit:
            return
        why = "engine and learner don't hold the same weights"
        if self.mismatch.shifted > SHIFTED_MISMATCH:
            why = "the mask or the tokens are shifted by one, since most fit the token before or after"
        raise Fault(
            f"step {self.step + 1}: {why}: the log-probabilities of engine and learner differ by "
            f"{self.mismatch.mean:.2g} nats a token (largest {self.mismatch.largest:.2g}), and "
            f"algorithm.mismatch_limit is {limit:g}. This step has changed nothing. It is a defect: report it with "
            "what lscpu and nvidia-smi say"
        )

    def _score_before(self, parts: Sequence[Minibatch]) -> tuple[dict[int, FloatArray], dict[int, FloatArray]]:
        """By index in the batch: log-probabilities under the policy before the step, and the reference.

        Of the samples in this rank's rows. The former are empty when there is one update: its own forward pass has
        them.
        """
        wanted = self.config.old_logprobs == "learner" or any(s.expert for part in parts for s in part.samples)
        again = wanted and len(parts) > 1
        if not again and self.updater.reference is None:
            return {}, {}
        rows = [(part, self.updater.own(packed)) for part, packed in zip(parts, self._packed, strict=True)]
        old = self._scored(self.policy, rows) if again else {}
        if again:
            self._compare(rows, old)
        if self.updater.reference is None:
            return old, {}
        with self.updater.reference.lent_to(self.policy.device):
            return old, self._scored(self.updater.reference, rows)

    def _scored(self, policy: Policy, rows: Sequence[tuple[Minibatch, list[PackedRow]]]) -> dict[int, FloatArray]:
        """Log-probabilities under ``policy`` of the samples in ``rows``, by index in the batch.

        From the very rows in which they are trained on first. In bfloat16 a token's may differ by a hundredth between
        two rows, and a ratio that is 1 would leave a narrow clip range (GSPO's is 3e-4).
        """
        found: dict[int, FloatArray] = {}
        for part, own in rows:
            new = [row for row in own if any(part.indices[m] not in found for m in row.members)]
            values = self.updater.score(policy, part.samples, new)
            found = {part.indices[m]: values[m] for row in new for m in row.members} | found
        return found

    def _compare(self, rows: Sequence[tuple[Minibatch, list[PackedRow]]], old: Mapping[int, FloatArray]) -> None:
        """The mismatch of the whole batch, of all ranks, before the first of several updates. Raises ``Fault`` as
        ``_check_mismatch``."""
        tally = Tally(self.policy.device)
        for part, own in rows:
            for row in own:
                before, engine, counts = (
                    torch.from_numpy(row.concatenate(values)).to(self.policy.device)
                    for values in (
                        [old.get(i, UNKNOWN) for i in part.indices],
                        [s.engine_logprobs for s in part.samples],
                        [(s.versions == self.version) & (not s.expert) for s in part.samples],
                    )
                )
                tally.add_mismatch(Mismatch.of(before, engine, counts, row.selected.tolist()))
        self.mismatch = tally.read(self.updater.ranks)[-1]
        self._compared = True
        self._check_mismatch()

    def _backward(self, minibatch: Minibatch, rows: list[PackedRow]) -> float:
        """Adds the minibatch's gradient up over its microbatches, and the ranks; returns the loss."""
        tally = Tally(self.policy.device)
        for row in self.updater.own(rows):
            out = self.policy.logprobs(
                row, temperature=self.updater.temperature, chunk=self.config.logits_chunk, entropy=True
            )
            assert out.entropy is not None
            loss, metrics, mismatch = self._loss(out.values, row, minibatch)
            loss.backward()
            tally.add(loss, out.entropy, metrics, mismatch)
            self.updater.progress()
        self.updater.optimizer.add_up()
        loss_sum, entropy, metrics_sum, mismatch_sum = tally.read(self.updater.ranks)
        self.entropy += entropy
        self.metrics = LossMetrics.merge([self.metrics, metrics_sum])
        self.mismatch += mismatch_sum
        self.rows += rows
        self.room += room(rows)
        self.sequences += len(minibatch.samples)
        self.experts += sum(s.expert for s in minibatch.samples)
        return loss_sum

    def _loss(self, logprobs: Tensor, row: PackedRow, minibatch: Minibatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """The row's loss, and the values of its ``LossMetrics`` and ``Mismatch`` (None: not of the current weights)."""
        samples, indices = minibatch.samples, minibatch.indices

        def tensor(values: np.ndarray) -> Tensor:
            out = torch.from_numpy(values)
            out = out if values.dtype == np.bool_ else out.to(logprobs.dtype)
            return out.to(self.policy.device, non_blocking=True)

        engine = tensor(row.concatenate([s.engine_logprobs for s in samples]))
        sampled = tensor(row.repeat(np.array([not s.expert for s in samples])))
        before = logprobs.detach()
        if self.old:
            before = tensor(row.concatenate([self.old.get(i, UNKNOWN) for i in indices]))
        apart = None
        if not self._compared and not self.norms:  # until the first step the parameters are those of ``version``
            current = tensor(row.concatenate([s.versions for s in samples]) == self.version)
            apart = Mismatch.of(before, engine, current & sampled, row.selected.tolist())
        old, mismatch = before, torch.where(sampled, before - engine, 0.0)
        if self.config.old_logprobs == "engine":
            old, mismatch = torch.where(sampled, engine, before), torch.zeros_like(before)
        weights = tensor(row.repeat(minibatch.policy_weights))
        advantages = tensor(row.repeat(np.array([s.advantage for s in samples])))
        loss, metrics = policy_loss(
            self.updater.loss,
            loss_input(logprobs, old, mismatch, advantages, weights, row.selected.tolist()),
            logprobs,
            weights,
            self.config,
            reference=tensor(row.concatenate([self.reference.get(i, UNKNOWN) for i in indices]))
            if self.reference
            else None,
            kl_weights=tensor(row.repeat(minibatch.kl_weights)),
        )
        return loss, metrics, apart

    def report(self, seconds: float) -> UpdateReport:
        metrics = self.metrics
        tokens = sum(row.whole_tokens for row in self.rows)
        computed = sum(len(row.token_ids) for row in self.rows)
        action_tokens = int(sum(row.selected.sum() for row in self.rows))
        return UpdateReport(
            updates=len(self.norms),
            skipped=len(self.losses) - len(self.norms),
            loss=sum(self.losses) / len(self.losses) if self.losses else 0.0,
            kl=metrics.kl_mean,
            clip_share=metrics.clip_share,
            ratio_mean=metrics.ratio_mean,
            importance_mean=metrics.importance_mean,
            importance_max=metrics.importance_max,
            grad_norm=sum(self.norms) / len(self.norms) if self.norms else 0.0,
            lr=self.config.optimizer.lr * self.updater.schedule(self.step),
            entropy=self.entropy / action_tokens if action_tokens else NAN,
            mismatch=self.mismatch.mean,
            mismatch_max=self.mismatch.largest if self.mismatch.tokens else NAN,
            mismatch_shifted=self.mismatch.shifted,
            action_tokens=action_tokens,
            tokens=tokens,
            sequences=self.sequences,
            expert_sequences=self.experts,
            microbatches=len(self.rows),
            shared_tokens=tokens - computed,
            packing_efficiency=computed / self.room if self.room else NAN,
            seconds=seconds,
        )


def save_minibatch(path: Path, minibatch: Minibatch) -> None:
    """Writes a minibatch as ``.npz``: per-token arrays end to end, cut by ``lengths`` and ``actions``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = minibatch.samples
    np.savez(
        path,
        lengths=np.array([len(s.token_ids) for s in samples]),
        actions=np.array([s.actions for s in samples]),
        token_ids=np.concatenate([s.token_ids for s in samples]),
        action_mask=np.concatenate([s.action_mask for s in samples]),
        engine_logprobs=np.concatenate([s.engine_logprobs for s in samples]),
        versions=np.concatenate([s.versions for s in samples]),
        advantages=np.array([s.advantage for s in samples]),
        questions=np.array([s.question for s in samples]),
        policy_weights=minibatch.policy_weights,
        kl_weights=minibatch.kl_weights,
    )
