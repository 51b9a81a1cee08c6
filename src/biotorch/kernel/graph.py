"""The autograd graph of the backward pass that is running."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, _engine_run_backward


def roots() -> list[Any]:
    """The nodes at which the running backward passes began. Only the frames of their callers know them."""
    found = []
    frames: list[FrameType] = list(sys._current_frames().values())
    while frames:
        frame = frames.pop()
        if frame.f_code is _engine_run_backward.__code__:
            outputs = frame.f_locals["t_outputs"]
            found += [each.node if isinstance(each, GradientEdge) else each.grad_fn for each in outputs]
        if frame.f_back is not None:
            frames.append(frame.f_back)
    del frame  # a frame that refers to itself would keep the caller's network alive
    return [node for node in found if node is not None]


def running() -> set[Any]:
    """The nodes that the running backward passes execute, without leaves, of which the engine does not always tell."""
    first = roots()  # of these the engine does not tell, either
    return {*first, *(each for each in upstream(first) if each.next_functions and _takes_part(each))}


def _takes_part(node: Any) -> bool:
    return bool(torch._C._will_engine_execute_node(node))


def inputs(node: Any) -> Iterator[Any]:
    """The nodes that `node` hands its gradients to."""
    return (upstream for upstream, _ in node.next_functions if upstream is not None)


def upstream(nodes: Iterable[Any], stop: Iterable[Any] = ()) -> set[Any]:
    """The nodes of the graph that `nodes` hand their gradients to, and `nodes`, up to those in `stop`."""
    seen = set(nodes)
    frontier, ends = list(seen), set(stop)
    while frontier:
        fresh = {each for each in inputs(frontier.pop()) if each not in seen and each not in ends}
        seen |= fresh
        frontier.extend(fresh)
    return seen


def users(nodes: Iterable[Any]) -> dict[Any, list[Any]]:
    """The nodes that use each node's output, for all nodes upstream of `nodes`."""
    found: dict[Any, list[Any]] = {node: [] for node in upstream(nodes)}
    for user in found:
        for node in inputs(user):
            found[node].append(user)
    return found


def downstream(nodes: Iterable[Any], of: dict[Any, list[Any]]) -> set[Any]:
    """The nodes that depend on `nodes`, and `nodes`, given the users of every node."""
    found = set(nodes)
    frontier = list(found)
    while frontier:
        fresh = {user for user in of[frontier.pop()] if user not in found}
        found |= fresh
        frontier.extend(fresh)
    return found
