"""The cost of reading a wiring against the width and depth of a network, in its bare forward passes."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sb3_redo import trace_wiring


class TransformerBlock(nn.Module):
    """Attention and a hidden layer, each with a skip around it."""

    def __init__(self, size: int = 128):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(size), nn.LayerNorm(size)])
        self.attention = nn.MultiheadAttention(size, 4, batch_first=True)
        self.hidden = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens for tokens, [batch, tokens, size] both."""
        tokens = self.norms[0](x)
        x = x + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        mixed: Tensor = x + self.hidden(self.norms[1](x))
        return mixed


def nature_cnn(width: int) -> tuple[nn.Module, Tensor]:
    """A DQN of Mnih et al. 2015, ``width`` times as wide, and an observation."""
    first, second, hidden = 32 * width, 64 * width, 512 * width
    convolutions = nn.Conv2d(4, first, 8, 4), nn.Conv2d(first, second, 4, 2), nn.Conv2d(second, second, 3)
    layers = [part for convolution in convolutions for part in (convolution, nn.ReLU())]
    head = nn.Flatten(), nn.Linear(49 * second, hidden), nn.ReLU(), nn.Linear(hidden, 6)
    return nn.Sequential(*layers, *head), torch.rand(1, 4, 84, 84)


def mlp(depth: int) -> tuple[nn.Module, Tensor]:
    """``depth`` hidden layers of 256 neurons, and an observation."""
    hidden = [part for _ in range(depth - 1) for part in (nn.Linear(256, 256), nn.ReLU())]
    return nn.Sequential(nn.Linear(17, 256), nn.ReLU(), *hidden, nn.Linear(256, 6)), torch.rand(1, 17)


def transformer(depth: int) -> tuple[nn.Module, Tensor]:
    """``depth`` blocks of 128 features, and 16 tokens."""
    blocks = [TransformerBlock() for _ in range(depth)]
    return nn.Sequential(nn.Linear(8, 128), *blocks, nn.Flatten(), nn.Linear(16 * 128, 6)), torch.rand(1, 16, 8)


def networks() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Yield every network of the table with its name and an observation."""
    for width in (1, 2, 4, 8, 16):
        yield f"Nature CNN, {width} times as wide", *nature_cnn(width)
    for depth in (4, 8, 16, 32, 64):
        yield f"{depth} hidden layers of 256 neurons", *mlp(depth)
    yield "Transformer of 12 blocks", *transformer(12)


def least_time(run: Callable[[], Any], times: int) -> float:
    """Return the least CPU time of several runs, in seconds."""
    begun = [(time.process_time(), run(), time.process_time())[::2] for _ in range(times)]
    return min(end - begin for begin, end in begun)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| network | tracing, CPU seconds | in bare passes |\n|---|---|---|")
    for name, network, observation in networks():
        with torch.no_grad():
            bare = least_time(lambda network=network, x=observation: [network(x) for _ in range(5)], 5) / 5  # type: ignore[misc]
        tracing = least_time(lambda network=network, x=observation: trace_wiring(network, x), 3)  # type: ignore[misc]
        print(f"| {name} | {tracing:.3f} | {tracing / bare:.0f} |", flush=True)
