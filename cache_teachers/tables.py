"""Tables of a plan, a verification and an inspection, in 80 columns; --json prints all findings by their keys."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Column, Table

from palenka.ground.console import facts, plain_table
from palenka.ground.quantities import duration, extent, size

Found = Mapping[str, Any]
Rows = list[tuple[str, str]]


def plan_tables(found: Found) -> Iterator[Table]:
    """The cost of a capture, and the compared encodings."""
    sizes, sample, students = found["bytes_per_token"], found["sample"], found["break_even_students"]
    from_on = "the first student" if students == 1 else f"student {students:,}"
    rows = [
        ("reads", f"{found['tokens']:,} tokens"),
        ("writes", f"{size(found['bytes'])}, {sizes['all']:.1f} bytes a token; {size(found['free_bytes'])} are free"),
        *_bytes_by_array(sizes),
        (
            "takes",
            f"{duration(found['seconds'])}, the teacher's forward pass alone {duration(found['forward_seconds'])}",
        ),
        ("", f"timed on {sample['tokens']:,} tokens in {duration(sample['seconds'])}"),
        (
            "live",
            f"a live teacher takes {duration(found['live_seconds_per_student'])} for each student of "
            f"{found['epochs']:,} epoch(s); a cache is cheaper from {from_on} on",
        ),
    ]
    for model, mass in found.get("padding_mass", {}).items():
        rows.append(("padding", f"{model} gives {mass:.2g} of its mass to tokens that the tokenizer does not have"))
    yield facts("What the capture would cost", rows)
    yield _encodings(found["encodings"])


def verify_tables(found: Found) -> Iterator[Table]:
    """A cache beside its teacher."""
    live = found["nondeterminism"]
    rows = [
        ("cache", found["cache"]),
        ("compared", f"{found['windows']:,} random windows, means over their tokens"),
        ("damaged", f"{len(found['damaged']):,} shard(s)" if found["damaged"] else "nothing that was looked at"),
    ]
    meanings = {
        "missing": "of the mass is outside the kept tokens",
        "truncation": "nats are lost by the kept tokens alone, the others alike",
        "low_rank": "nats are lost by low rank",
        "rounding": "nats are lost by rounding",
    }
    for name, meaning in meanings.items():
        by_temperature = found.get(name, {})
        if by_temperature:
            said = ", ".join(f"{value:.2g} at T = {float(t):g}" for t, value in by_temperature.items())
            rows.append((name.replace("_", " "), f"{said}: {meaning}"))
    rows.append(
        (
            "teacher",
            f"between two passes {live['kl']:.2g} nats, {live['largest_difference']:.2g} at most in a log-probability",
        )
    )
    differing = {name: share for name, share in found["differing_codes"].items() if share}
    said = ", ".join(f"{share:.2%} of {name}" for name, share in differing.items()) or "none"
    rows.append(("codes", f"that would be stored otherwise now: {said}"))
    rows += _hidden_errors(found["hidden"])
    yield facts("The cache beside its teacher", rows)


def inspect_tables(found: Found) -> Iterator[Table]:
    """The contents of a cache."""
    manifest, shards, sizes = found["manifest"], found["shards"], found["bytes_per_token"]
    rule, logits, hidden = manifest["windows"], manifest["logits"], manifest["hidden"]
    rows = [
        ("cache", found["cache"]),
        ("teacher", ", ".join(map(_teacher, manifest["teachers"].items()))),
        (
            "text",
            f"{manifest['num_tokens']:,} tokens of a vocabulary of {manifest['vocabulary_size']:,} "
            f"(corpus {manifest['corpus'][:12]})",
        ),
        ("windows", f"of {rule['length']:,} tokens, in {rule['views']:,} view(s)"),
        ("captured", f"{shards['captured']:,} of {shards['all']:,} shards, {found['tokens']:,} tokens"),
        ("size", f"{size(found['tokens'] * sizes['all'])}, {sizes['all']:.1f} bytes a token"),
        *_bytes_by_array(sizes),
        ("logits", found["encoding"]),
    ]
    for t in map(str, logits["temperatures"]):
        if t in found["entropy"]:
            mass = f"{found['kept_mass'][t]:.1%} of the mass is kept one by one"
            rows.append((f"  T = {float(t):g}", f"{mass}; entropy {found['entropy'][t]:.2f} nats"))
    if clipped := {name: share for name, share in found["clipped"].items() if share}:
        rows.append(("  clipped", ", ".join(f"{share:.2%} of {name}" for name, share in clipped.items())))
    if hidden:
        kept = "; ".join(_layers(name, layers) for name, layers in manifest["hidden_layers"].items())
        rows.append(("hidden", f"{found['hidden_encoding']} at {hidden['positions']:,} positions of {kept}"))
        rows += _hidden_errors(found["hidden_error"])
    yield facts("What the cache holds", rows)


def _bytes_by_array(sizes: Found) -> Rows:
    """Bytes per token of the distributions, array by array, and of the hidden states of all layers together."""
    logits = {name.removeprefix("logits/"): each for name, each in sizes.items() if name.startswith("logits/")}
    hidden = [each for name, each in sizes.items() if name.startswith("hidden/")]
    rows = []
    if logits:
        parts = ", ".join(f"{name} {each:.1f}" for name, each in logits.items())
        rows.append(("  logits", f"{sum(logits.values()):.1f} bytes a token: {parts}"))
    if hidden:
        rows.append(("  hidden", f"{sum(hidden):.1f} bytes a token: {len(hidden):,} layers of {extent(hidden, 1)}"))
    return rows


def _hidden_errors(errors: Mapping[str, float]) -> Rows:
    if not errors:
        return []
    return [("  error", "of a layer's variance: " + ", ".join(f"{key} {error:.3f}" for key, error in errors.items()))]


def _teacher(named: tuple[str, Found]) -> str:
    name, identity = named
    config = identity["config"]
    config = config.get("text_config") or config
    where = f", {identity['source']}" if identity.get("source") else ""
    return f"{name}: {config.get('model_type', 'a model')}, {identity['precision']}{where}"


def _layers(model: str, layers: Found) -> str:
    return f"{model}'s layers {', '.join(map(str, layers['layers']))} of {layers['depth']}"


def _encodings(compared: Mapping[str, Any]) -> Table:
    """Bytes and gradient errors, a row for each encoding."""
    temperatures = sorted({t for found in compared.values() for t in found["gradient_error"]}, key=float)
    table = plain_table(
        Column("kept", overflow="fold"),
        Column("bytes/token", justify="right"),
        title="Encodings: the error of a student's gradient, uniform and near the teacher",
    )
    for temperature in temperatures:
        table.add_column(f"T = {float(temperature):g}", justify="right", no_wrap=True)
    for name, found in compared.items():
        errors = (found["gradient_error"].get(temperature) for temperature in temperatures)
        cells = (" ".join(f"{error:.3f}" for error in each.values()) if each else "–" for each in errors)
        table.add_row(name, f"{found['bytes_per_token']:.1f}", *cells)
    return table
