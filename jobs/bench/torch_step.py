"""Time training steps of PyTorch's own on one GPU, or on a CPU: what ``gpu.py`` compares this program with.

    python jobs/bench/torch_step.py [--arch resnet50] [-B 32] [--side 224] [--candidates float32 tf32 ...]

Forward, backward and an update of SGD with momentum, on images that are on the device already; cuDNN tries
its algorithms first. Candidates: float32, in TF32 and in float16 (autocast, with its scaled loss), each in
PyTorch's default layout and in channels_last. Prints a JSON object: seconds of an iteration (quartiles, the
median between them) for each. Needs PyTorch 2.3 or newer and nothing of this program, so that it runs in an
environment of its own.
"""

import argparse
import json
import statistics
import sys
import time

DEPTHS = {'resnet8': (8, (1, 1, 1)), 'resnet20': (16, (3, 3, 3)), 'resnet50': (64, (3, 4, 6, 3))}
CANDIDATES = ('float32', 'float32 channels_last', 'tf32', 'tf32 channels_last', 'float16',
              'float16 channels_last')
WARM_UP = 10


def network(arch, n_class):
    """The network of ``models`` of that name, with as many parameters, in PyTorch."""
    import torch
    from torch import nn

    def convolution(n_in, n_out, ksize, stride):
        return nn.Conv2d(n_in, n_out, ksize, stride, ksize // 2, bias=False)

    class Block(nn.Module):
        """Convolutions of (channels, kernel size, stride) around a shortcut."""

        def __init__(self, n_in, convolutions):
            super().__init__()
            layers, n = [], n_in
            for n_out, ksize, stride in convolutions:
                layers += [convolution(n, n_out, ksize, stride), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)]
                n = n_out
            stride = max(stride for *_, stride in convolutions)
            self.branch = nn.Sequential(*layers[:-1])
            self.shortcut = nn.Identity() if (n, stride) == (n_in, 1) else nn.Sequential(
                convolution(n_in, n, 1, stride), nn.BatchNorm2d(n))

        def forward(self, x):
            return torch.relu_(self.branch(x) + self.shortcut(x))

    n, depths = DEPTHS[arch]
    bottlenecks = arch == 'resnet50'
    width = n
    layers = [convolution(3, n, 7, 2) if bottlenecks else convolution(3, n, 3, 1),
              nn.BatchNorm2d(n), nn.ReLU(inplace=True)]
    layers += [nn.MaxPool2d(3, 2, 1)] if bottlenecks else []
    for stage, depth in enumerate(depths):
        for block in range(depth):
            c, stride = width << stage, 2 if stage and not block else 1
            convolutions = ([(c, 1, 1), (c, 3, stride), (4 * c, 1, 1)] if bottlenecks
                            else [(c, 3, stride), (c, 3, 1)])
            layers.append(Block(n, convolutions))
            n = convolutions[-1][0]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, n_class))


def training(model, x, t, float16=False):
    """Return a function that trains ``model`` by a step on images ``x``, labels ``t``, and gives the loss."""
    import torch
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    device = x.device.type
    scaler = torch.amp.GradScaler(device, enabled=float16)

    def step():
        optimizer.zero_grad()
        with torch.autocast(device, torch.float16, enabled=float16):
            loss = torch.nn.functional.cross_entropy(model(x), t)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()
    return step


def seconds(candidate, arch, batch, side, device, iterations):
    """Seconds of each iteration of a candidate after the warm-up: list of float."""
    import torch
    precision, _, layout = candidate.partition(' ')
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == 'tf32'
    memory_format = torch.channels_last if layout else torch.contiguous_format
    torch.manual_seed(0)
    model = network(arch, 1000).to(device, memory_format=memory_format)
    x = torch.randn(batch, 3, side, side, device=device).to(memory_format=memory_format)
    step = training(model, x, torch.randint(1000, (batch,), device=device), precision == 'float16')
    for _ in range(WARM_UP):
        step()
    if device == 'cpu':
        clock = []
        for _ in range(iterations + 1):
            clock.append(time.perf_counter())
            step()
        return [stop - start for start, stop in zip(clock, clock[1:])]
    # Recording an event waits for nothing.
    events = [torch.cuda.Event(enable_timing=True) for _ in range(iterations + 1)]
    for event in events:
        event.record()
        step()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) / 1000 for start, stop in zip(events, events[1:])]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--arch', choices=DEPTHS, default='resnet50')
    parser.add_argument('-B', '--batchsize', type=int, default=32, help='(32)')
    parser.add_argument('--side', type=int, default=224, help='of the images (224)')
    parser.add_argument('--iterations', type=int, default=100, help='after a warm-up of 10 (100)')
    parser.add_argument('--candidates', nargs='+', choices=CANDIDATES, default=CANDIDATES, metavar='C')
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    args = parser.parse_args()
    try:
        import torch
    except ImportError as error:
        print(f'{error}: python3 -m venv torch && torch/bin/pip install torch, then gpu.py --torch '
              'torch/bin/python', file=sys.stderr)
        return 2
    if args.device == 'cuda' and not torch.cuda.is_available():
        print(f'PyTorch {torch.__version__} finds no GPU: install one for the CUDA of this driver',
              file=sys.stderr)
        return 2
    found = {}
    for candidate in args.candidates:
        times = seconds(candidate, args.arch, args.batchsize, args.side, args.device, args.iterations)
        found[candidate] = statistics.quantiles(times, n=4, method='inclusive')
        if args.device == 'cuda':
            torch.cuda.empty_cache()
    print(json.dumps({'torch': torch.__version__, 'cudnn': torch.backends.cudnn.version(),
                      'quartiles': found}))
    return 0


if __name__ == '__main__':
    sys.exit(main())
