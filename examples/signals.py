"""Signals: tell four waveforms apart with a one-dimensional network.

    python examples/signals.py

A signal is (channels, length), a batch (n, channels, length). The figure of merit is the accuracy on new signals, with
precision and recall for each waveform.
"""

import numpy as np

from xcnn import Trainer, data, nn, optim

__all__ = ["WAVES", "main", "signals"]

WAVES = ("sine", "square", "sawtooth", "noise")


def signals(count: int, seed: int, length: int = 128) -> data.Dataset:
    """Return noisy waves of random frequency and phase, (count, 1, length)."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, len(WAVES), count)
    turns = rng.uniform(3, 8, (count, 1)) * np.linspace(0, 1, length) + rng.random((count, 1))  # (count, length)
    waves = np.stack([np.sin(2 * np.pi * turns), np.sign(np.sin(2 * np.pi * turns)), 2 * (turns % 1) - 1, 0 * turns])
    x = waves[kind, range(count)] + rng.normal(0, 0.4, (count, length))
    return data.Dataset(x[:, None].astype(np.float32), kind, WAVES, "waves")


def main(count: int = 2000, epochs: int = 6) -> float:
    """Train on `count` signals and return the accuracy on 400 others."""
    model = nn.Sequential(
        *(nn.Conv1d(1, 16, 7, padding=3), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(4)),
        *(nn.Conv1d(16, 32, 5, padding=2), nn.BatchNorm1d(32), nn.ReLU(), nn.GlobalAvgPool()),
        nn.Linear(32, len(WAVES)),
    )
    model.reset_parameters(0)
    trainer = Trainer(model, optim.Adam(model.parameters(), lr=5e-3))
    trainer.fit(signals(count, seed=0), epochs)
    metrics = trainer.evaluate(signals(400, seed=1))
    print(f"accuracy on new signals: {metrics.accuracy:.2%}")
    each = metrics.per_class()
    for wave, precision, recall in zip(WAVES, each.precision, each.recall, strict=True):
        print(f"{wave:>10}  precision {precision:.3f}  recall {recall:.3f}")
    return float(metrics.accuracy or 0)


if __name__ == "__main__":
    main()
