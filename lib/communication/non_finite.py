"""Why a mean of gradients is not finite: which rank, which parameter, and what to do."""

from lib.communication import wire

import numpy as np
from chainer.backends import cuda


def explain(comm, names, largest, values, means):
    """Say where an exchange's mean became NaN or infinite. Called by every process.

    Args:
        comm (lib.communication.communicators.MeanGradient): What exchanged them.
        names (list of str): The parameters' names, in order.
        largest (list of float): Largest magnitude of each of this process's gradients before the exchange,
            divided by K, NaN above all; 0 may stand for what the wire can hold.
        values (list of callable): ``values[i](offset)`` is an element of gradient i, divided by K.
        means (list): What the exchange gave, float32 arrays.

    Returns:
        str: One line, the same on every process: the rank and the first parameter (in the order of their
        names) whose gradient was not finite before the exchange; or the one that the wire's dtype could
        not hold; or the element whose sum it could not hold, and what to do; or the processes that alone
        have a mean that is not finite.
    """
    faults = comm.mpi_comm.allgather(_find_fault(largest, comm.wire_dtype))
    faults = {rank: fault for rank, fault in enumerate(faults) if fault}
    broken = {rank: fault for rank, fault in faults.items() if fault[0] == 'local'}
    if broken:
        return _explain_local(names, broken)
    remedy = (f'limit {np.finfo(comm.wire_dtype).max:.6g}; use a --loss-scale smaller than '
              f'{comm.loss_scale:g}')
    if comm.wire_dtype == np.float16:
        remedy += ', or --allreduce-grad-dtype float32'
    if faults:
        rank, (_, index, value) = min(faults.items(), key=lambda item: item[1][1])
        return (f'gradient of {names[index]} overflows {comm.wire_dtype} on the wire, on rank {rank}: '
                f'largest |g| {value:.6g}, {remedy}')
    places = comm.mpi_comm.allgather(_first_not_finite(means))
    index, offset = min(place for place in places if place)
    ranks = [rank for rank, place in enumerate(places) if place]
    if len(ranks) < comm.size:
        return (f'mean of element {offset} of the gradient of {names[index]} is not finite on rank '
                f'{_listed(ranks)} alone: its device, or the library or network that adds up, is at fault')
    total = sum(comm.mpi_comm.allgather(values[index](offset)))
    return (f'sum over {comm.size} processes of element {offset} of the gradient of {names[index]} '
            f'overflows {comm.wire_dtype}: {total:.6g}, {remedy}')


def _first_not_finite(means):
    """Find the first element that is not finite: ``(index of the mean, offset)`` or None."""
    return next(((index, int(elements[0])) for index, mean in enumerate(means)
                 if len(elements := np.flatnonzero(~np.isfinite(cuda.to_cpu(mean))))), None)


def _explain_local(names, broken):
    _, index, kind = min(broken.values(), key=lambda fault: fault[1])
    ranks = [rank for rank, fault in broken.items() if fault[1] == index]
    others = sorted(set(broken) - set(ranks))
    return (f'gradient of {names[index]} holds {kind} before the exchange, on rank {_listed(ranks)}'
            + (f' (another parameter\'s on rank {_listed(others)})' if others else ''))


def _find_fault(largest, wire_dtype):
    """Find the first fault of one process's gradients: ``(kind, index of the parameter, what)`` or None."""
    for index, value in enumerate(largest):
        if not np.isfinite(value):
            return 'local', index, 'NaN' if np.isnan(value) else 'infinity'
    payload = np.empty(len(largest), wire_dtype)
    wire.to_wire(np.array(largest, np.float32), payload)
    for index in np.flatnonzero(~np.isfinite(payload)).tolist():
        return 'wire', index, largest[index]
    return None


def _listed(ranks):
    shown = ', '.join(map(str, ranks[:8]))
    return shown if len(ranks) <= 8 else f'{shown} and {len(ranks) - 8} more'
