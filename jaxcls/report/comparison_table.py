"""The terminal's tables of a comparison with PyTorch. They know only dicts."""

from typing import Any


def say(text: str) -> None:
    """Prints at once: sections take a minute each."""
    print(text, flush=True)


def show_forward(report: dict[str, Any]) -> None:
    """Activations by block, the logits, and the first divergence: what `comparison.compare_forward` returns."""
    logits, first = report["logits"], report["first_divergence"]
    say("\nErrors: largest difference over the largest value, against PyTorch in float64.\n")
    say(f"{'':26}{'jaxcls float64':>15}{'PyTorch float32':>17}{'jaxcls float32':>16}")
    for row in report["activations"]:
        is_block = row["name"].count("/") == 1 and row["name"].startswith("stage")
        if is_block or row["name"] in ("stem", first):
            mark = "  <- first divergence" if row["name"] == first else ""
            note = f"  {row['note']}" if row["note"] else ""
            say(_errors(row["name"], row["max_rel"], row["float32"]) + mark + note)
    say(_errors("logits", logits["max_rel"], logits["float32"]))
    say(
        f"\nLogits: at most {logits['max_abs']:.1e} apart in float64, top-1 agreement {logits['top1_agreement']:.2f}%; "
        f"float32 error {logits['float32']['ratio']:.2f} times PyTorch's own."
    )
    count = len(report["activations"])
    say(f"First divergence: {first or f'none, all {count} layers are equal up to rounding'}.")


def _errors(name: str, float64: float, float32: dict[str, float]) -> str:
    return f"{name:26}{float64:15.1e}{float32['torch']:17.1e}{float32['jax']:16.1e}"


def show_gradients(found: dict[str, Any]) -> None:
    """What `comparison.compare_gradients` returns."""
    say(
        f"\nGradients of {len(found['parameters'])} parameters, float64: largest error {found['max_rel']:.1e} "
        f"({found['worst']}); loss {found['loss_torch']:.10f} in PyTorch, {found['loss_jax']:.10f} in jaxcls."
    )


def show_training(reseat: bool, differences: list[str]) -> None:
    """What the steps are, and the head of their table; `differences` are those that the user asked for."""
    how = "jaxcls takes over PyTorch's state before each step" if reseat else "each side by itself"
    say(f"\nOptimizer steps in float64 with mixup, label smoothing, warm-up and cosine; {how}.")
    for text in differences or ["none; decay_bn and the schedule are the reference's, the running variance is unbiased"]:
        say(f"Known differences: {text}.")
    columns = (("loss, PyTorch", 16), ("loss, jaxcls", 16), ("lr, PyTorch", 13), ("lr, jaxcls", 12), ("parameters", 12))
    say("\nstep" + "".join(f"{name:>{width}}" for name, width in (*columns, ("BN stats", 10))))


def show_step(number: int, row: dict[str, Any]) -> None:
    """A row of `comparison.compare_training`."""
    say(
        f"{number:4}{row['loss_torch']:16.10f}{row['loss_jax']:16.10f}{row['lr_torch']:13.6f}{row['lr_jax']:12.6f}"
        f"{row['parameters']:12.1e}{row['statistics']:10.1e}"
    )
