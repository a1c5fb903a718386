"""How far metrics of this process move while a test does something."""

from __future__ import annotations

from shardgit.telemetry import REGISTRY


class Moved:
    """What samples of ``telemetry.REGISTRY`` have gained since this was made."""

    def __init__(self) -> None:
        self._before = _samples()

    def __call__(self, sample: str) -> dict[str, float]:
        """Return the gain of a sample by the values of its labels, with a space between; none that stood still."""
        now = {key: value for key, value in _samples().items() if key[0] == sample}
        gains = {
            labels: value - self._before.get((name, labels), 0.0)
            for (name, labels), value in now.items()
        }
        return {labels: gain for labels, gain in gains.items() if gain}


def _samples() -> dict[tuple[str, str], float]:
    return {
        (sample.name, " ".join(sample.labels.values())): sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if not sample.name.endswith(("_created", "_bucket"))
    }
