"""Why a mean of gradients is not finite: which rank, which parameter, and what to do."""

from lib.communication import layout, wire

import numpy as np
from chainer.backends import cuda


def explain(comm, params, gradients, mean):
    """Say where an exchange's mean became NaN or infinite. Called by every process.

    Args:
        comm (lib.communication.communicators.MeanGradient): What exchanged them.
        params (list): ``(name, chainer.Parameter)`` in the order in which their gradients were sent.
        gradients (list): This process's gradients before the exchange, arrays or None.
        mean: All means laid end to end, float32.

    Returns:
        str: One line, the same on every process: the rank and the first parameter (in the order of their
        names) whose gradient was not finite before the exchange; or the one that the wire's dtype could
        not hold; or the element whose sum it could not hold, and what to do.
    """
    names = [name for name, _ in params]
    gradients = [None if gradient is None else cuda.to_cpu(gradient) for gradient in gradients]
    faults = comm.mpi_comm.allgather(_find_fault(gradients, comm.wire_dtype, comm.virtual_workers))
    faults = {rank: fault for rank, fault in enumerate(faults) if fault}
    broken = {rank: fault for rank, fault in faults.items() if fault[0] == 'local'}
    if broken:
        return _explain_local(names, broken)
    remedy = (f'limit {np.finfo(comm.wire_dtype).max:.6g}; use a --loss-scale smaller than '
              f'{comm.loss_scale:g}')
    if comm.wire_dtype == np.float16:
        remedy += ', or --allreduce-grad-dtype float32'
    if faults:
        rank, (_, index, largest) = min(faults.items(), key=lambda item: item[1][1])
        return (f'gradient of {names[index]} overflows {comm.wire_dtype} on the wire, on rank {rank}: '
                f'largest |g| {largest:.6g}, {remedy}')
    element = int(np.flatnonzero(~np.isfinite(cuda.to_cpu(mean)))[0])
    index, offset = layout.locate(element, [param.size for _, param in params])
    value = 0.0 if gradients[index] is None else float(gradients[index].flat[offset]) / comm.virtual_workers
    total = sum(comm.mpi_comm.allgather(value))
    return (f'sum over {comm.size} processes of element {offset} of the gradient of {names[index]} '
            f'overflows {comm.wire_dtype}: {total:.6g}, {remedy}')


def _explain_local(names, broken):
    _, index, kind = min(broken.values(), key=lambda fault: fault[1])
    ranks = [rank for rank, fault in broken.items() if fault[1] == index]
    others = sorted(set(broken) - set(ranks))
    return (f'gradient of {names[index]} holds {kind} before the exchange, on rank {_listed(ranks)}'
            + (f' (another parameter\'s on rank {_listed(others)})' if others else ''))


def _find_fault(gradients, wire_dtype, virtual_workers):
    """Find the first fault of one process's gradients: ``(kind, index of the parameter, what)`` or None."""
    for index, gradient in enumerate(gradients):
        if gradient is not None and not np.isfinite(gradient).all():
            return 'local', index, 'NaN' if np.isnan(gradient).any() else 'infinity'
    for index, gradient in enumerate(gradients):
        if gradient is not None:
            payload = np.empty(gradient.size, wire_dtype)
            wire.to_wire(gradient, payload, virtual_workers)
            if not np.isfinite(payload).all():
                return 'wire', index, float(np.abs(gradient).max()) / virtual_workers
    return None


def _listed(ranks):
    shown = ', '.join(map(str, ranks[:8]))
    return shown if len(ranks) <= 8 else f'{shown} and {len(ranks) - 8} more'
