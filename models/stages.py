"""A network computed stage by stage, so that gradients leave while others are still to be computed.

Chainer hands out the gradients of parameters at the end of a backward pass, though those of the last layers
are known long before: with ResNet-50 the last third of the computation holds two thirds of the parameters.
So every stage computes from a variable of its own, where backward pauses. What is computed, and in which
order, stays the same, and so do the bits.
"""

import chainer

# A part is worth a message of its own from 4 million elements on, and, since an all-reduce among P processes
# takes a number of steps in proportion to P, from 8192 elements per process. What is left for the last part,
# which nothing hides, may be an eighth of that.
_PART = 1 << 22
_PART_PER_PROCESS = 1 << 13
_REST = 8


def parts(sizes, processes):
    """Join stages into the few large parts in which their gradients travel.

    Args:
        sizes (sequence of int): Parameters of the stages, first to last.
        processes (int): Processes that exchange them.

    Returns:
        tuple of tuple of int: The stages of each part, in the order in which backward computes them.
    """
    least = max(_PART, _PART_PER_PROCESS * processes)
    found, part, left = [], [], sum(sizes)
    for stage in reversed(range(len(sizes))):
        part.append(stage)
        left -= sizes[stage]
        if stage == 0 or sum(sizes[i] for i in part) >= least and left >= least // _REST:
            found.append(tuple(part))
            part = []
    return tuple(found)


def sizes(model):
    """Count the parameters of each stage of ``model``, first to last: a tuple of int."""
    return tuple(sum(link.count_params() for link in links) for _, links in model.stages)


def parameters(model):
    """List the parameters of each stage of ``model``, ``(name, chainer.Parameter)``, first stage to last."""
    return [[(f'/{link.name}{path}', param) for link in links for path, param in link.namedparams()]
            for _, links in model.stages]


def forward(model, x):
    """Compute ``model(x)`` from stages that are cut from each other.

    Args:
        model (chainer.Chain): With ``stages``.
        x: Its input.

    Returns:
        tuple: The output; and the cuts, for :func:`backward`.
    """
    cuts, end = [], x
    for number, (function, _) in enumerate(model.stages):
        start = chainer.Variable(end.array) if number else end
        cuts.append((end, start))
        end = function(start)
    return end, cuts


def backward(loss, cuts):
    """Run backward from ``loss``, stage by stage, the last first.

    Args:
        loss (chainer.Variable): A function of what :func:`forward` returned, with its gradient.
        cuts (list): Of :func:`forward`. Emptied on the way: a stage's arrays are freed when it is done.

    Yields:
        int: After each stage its number, from 0 for the first: the gradients of its parameters are there.
    """
    loss.backward()
    while cuts:
        yield len(cuts) - 1
        end, start = cuts.pop()
        if cuts:
            end.grad = start.grad
            del start
            end.backward()
