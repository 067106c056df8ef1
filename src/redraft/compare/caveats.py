"""What a reader must know before relying on the numbers of a study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from redraft.compare.format import quantity, shortened
from redraft.compare.measurements import CurvePoint, Measurements, Start, same_tokens
from redraft.compare.results import Baselines, ConstraintStudy, Likelihood
from redraft.train.recipe import TrainTable

FEW_SEEDS = 5
BUSY = 1.5  # load per core above which times are too long
STILL_FALLING = 0.01  # relative gain over the last validation interval
SATISFIED = 95.0  # per cent of references
EQUAL = 1.01  # largest ratio of the sizes of checkpoints that count as equal


def caveats(
    measured: Measurements,
    likelihood: Sequence[Likelihood],
    baselines: Baselines,
    constrained: ConstraintStudy | None,
) -> list[str]:
    """The caveats that apply, one sentence or two each."""
    study, notes = measured.study, []
    if study.seeds < 2:
        notes.append(
            "Preliminary: there is one training seed, and another seed could change the verdict. Use --seeds 3."
        )
    notes += measured.data.notes
    if 1 < study.seeds < FEW_SEEDS:
        notes.append(f"{study.seeds} seeds show little of how training runs vary; the intervals are widened for this.")
    if (found := measured.data.contamination) is not None and found.total:
        notes.append(f"The test rows are contaminated: {found}.")
    notes += _on_likelihood(measured, likelihood, baselines)
    if measured.training:
        notes.append(_regularisation(measured))
    if constrained is not None and constrained.references < SATISFIED:
        notes.append(_on_references(constrained))
    if measured.starts:
        notes += _on_starts(measured)
    if any(run.post is not None for run in measured.training):
        notes.append(
            "All families were trained on the same rewards, with the same number of prompts and of texts that they "
            "wrote themselves. Likelihoods of these texts are exact or estimated, depending on the family, and the "
            "compute of an update differs."
        )
    notes += _on_training(measured)
    load, cores = measured.machine.load, measured.machine.cores
    if load and cores and load > BUSY * cores:
        notes.append(
            f"The machine was busy (load {load:.1f} on {cores} cores). Settings were timed in turns, so ratios are "
            "fair, but absolute times are too long."
        )
    if len(measured.places) > 1:
        nodes = " and ".join(dict.fromkeys(place.node for place in measured.places))
        notes.append(
            f"Times were measured in different places ({nodes}), one for each batch size: don't compare times of "
            "different batch sizes. Settings at the same batch size were timed in turns in one place."
        )
    if measured.missing:
        count = len(measured.missing)
        notes.append(f"{count} piece{'s' if count > 1 else ''} of the study are missing; the report lists them.")
    return notes


def _on_likelihood(measured: Measurements, likelihood: Sequence[Likelihood], baselines: Baselines) -> Iterator[str]:
    if any(row.is_bound for row in likelihood):
        yield (
            "Bits per byte are exact for autoregressive models and upper bounds for diffusion models: a diffusion "
            "model can be better than its number."
        )
    family, ngram = measured.study.baseline, baselines.ngram
    exact = next((row.bits_per_byte.value for row in likelihood if row.family == family), None)
    if measured.data.paired and ngram and exact is not None and exact >= ngram.bits_per_byte:
        yield (
            f"By likelihood, {family} ({exact:.2f} bits per byte) does not beat a {ngram.order}-gram model of the "
            f"targets alone ({ngram.bits_per_byte:.2f}): the models need more training."
        )


def _regularisation(measured: Measurements) -> str:
    """Dropout and weight decay, which families need in different amounts."""
    study, runs = measured.study, measured.training
    decay = f"weight decay {measured.plan.train.get('weight_decay', TrainTable.weight_decay):g}"
    if not study.dropouts:
        return (
            f"All families were trained with the same dropout {runs[0].dropout:g} and {decay}, which can favour one of "
            "them: on little data autoregressive models usually need more dropout than diffusion models, because noise "
            "regularises too. Use --dropout 0.1,0.3 to try several rates for each family."
        )
    tried = ", ".join(f"{rate:g}" for rate in study.dropouts)
    kept = {run.family: run.dropout for run in runs if run.kept}
    chosen = ", ".join(f"{family} {rate:g}" for family, rate in kept.items())
    total = sum(run.tokens for run in runs)
    return (
        f"Each model was trained at dropout {tried} on {measured.plan.tokens:,} tokens each time, {total:,} in all. "
        f"The rate that was best on validation rows was kept: {chosen}. The {decay} was the same for all."
    )


def _on_starts(measured: Measurements) -> Iterator[str]:
    """What each family had seen before, and what can't be compared between checkpoints."""
    starts, plan = measured.starts, measured.plan
    yield "The models were fine-tuned, so the verdict holds for these starting checkpoints."
    own = [start for start in starts if not start.converted]
    converted = [start for start in starts if start.converted]
    if converted:
        sources = ", ".join(dict.fromkeys(start.checkpoint for start in converted))
        before = f"{_names(own)} had been trained as such before and learned only these data. " if own else ""
        was, it = ("was", "it") if len(converted) == 1 else ("were", "them")
        yield (
            f"{before}{_names(converted)} {was} converted from an autoregressive checkpoint ({sources}) that had never "
            f"generated in this way, and learned it together with the data from the same {plan.tokens:,} training "
            f"tokens. A larger budget favours {it}."
        )
    taught = [start for start in converted if start.objective]
    if taught:
        yield (
            f"{_names(taught)} also learned from the checkpoint ({taught[0].objective['name']}), as it was before this "
            "study: not from the baseline, which is trained further. What the checkpoint computed is part of their "
            "compute."
        )
    ranks = {start.lora_rank for start in starts}
    if any(ranks):
        masks = [start for start in starts if "mask" in start.added]
        yield (
            f"Only adapters of rank {max(ranks)} were trained, for all families. Embeddings stayed as they were"
            + (f", that of the added mask token of {_names(masks)} too." if masks else ".")
        )
    if measured.data.paired and not all(start.separated for start in starts):
        yield "Answers follow their prompts directly: no chat template was used, for any family."
    sizes = [start.parameters for start in starts]
    if max(sizes) > EQUAL * min(sizes):
        each = ", ".join(f"{start.family} {quantity(start.parameters).strip()}" for start in starts)
        yield f"The checkpoints differ in size ({each} parameters), so the verdict is about models, not methods."
    if not same_tokens(starts):
        tokens = ", ".join(f"{start.family} {plan.tokens * start.tokens_per_token:,.0f}" for start in starts)
        yield (
            "The checkpoints have different tokenizers. All families read the same rows, so training budgets are equal "
            f"in passes over the data, not in tokens ({tokens}). Metrics of texts, bits per byte, seconds and compute "
            "per text can be compared. Tokens per second, compute per token and nats or perplexity per token can't."
        )


def _names(starts: Sequence[Start]) -> str:
    return " and ".join(filter(None, [", ".join(one.family for one in starts[:-1]), starts[-1].family]))


def _on_references(constrained: ConstraintStudy) -> str:
    """Why quality under the constraint is hard to interpret."""
    share = constrained.references
    kinds = "; ".join(f"{kind} {shortened(text)}" for kind, text in constrained.constraint.items())
    if constrained.inconclusive:
        many = f"Only {share:.1f} %" if share else "None"
        return (
            f"{many} of the test references satisfy the constraint ({kinds}), so quality under it is inconclusive; "
            "validity and times still hold. Check that the constraint describes the targets."
        )
    return (
        f"Only {share:.0f} % of the test references satisfy the constraint ({kinds}). Texts that satisfy it lose "
        "quality where their references don't, so the difference is not the price of the constraint alone."
    )


def _on_training(measured: Measurements) -> Iterator[str]:
    still = [run.family for run in measured.training if run.kept and _still_falling(run.curve.validation)]
    if still:
        names = ", ".join(dict.fromkeys(still))
        yield f"Validation loss still fell when the budget ended ({names}): more training can change the verdict."


def _still_falling(points: Sequence[CurvePoint]) -> bool:
    """The last validation interval still gained more than one per cent."""
    values = [point.bits_per_byte for point in points]
    return len(values) > 2 and values[-1] == min(values) and values[-2] - values[-1] > STILL_FALLING * values[-1]
