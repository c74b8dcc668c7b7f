"""How much memory an encoding takes: told before anything is written, and kept to while tasks run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from hhtld.codecs.base import Profile
from hhtld.encoding.plan import Plan
from hhtld.encoding.resources import Work
from hhtld.errors import BudgetError, shown
from hhtld.identity import PaletteGroupKey
from hhtld.matrix import TensorInfo
from hhtld.slots.feedback import feedback_nbytes
from hhtld.sources.contract import TensorSource
from hhtld.sources.crew import Crew

__all__ = ["TaskMemory", "check_memory", "expected_nbytes"]

_TENSOR_NBYTES = 10_000  # what the source, the plan, the report and the table know of a tensor
_FEW_TENSORS = 1_000  # whose facts are not counted
_HISTOGRAM_NBYTES = 8 << 20  # of a group's cosines
_COUNTED_ROWS = 1 << 18  # counts of tensors under way take no more than those of so many rows that all differ


class _Need(NamedTuple):
    """Bytes without which something of a source cannot be encoded."""

    nbytes: int
    name: str
    what: str
    kind: str = "tensor"


def check_memory(source: TensorSource, plan: Plan, work: Work) -> int:
    """Return the bytes to set aside for what groups share and for the cosines of rows.

    Raises
    ------
    BudgetError
        If there is less memory than a tensor or a side file needs; the message names it.
    """
    largest = max(_needs(source, plan, work), default=_Need(0, "", ""))
    tables = _TENSOR_NBYTES * max(0, len(source.infos()) - _FEW_TENSORS)
    nbytes, what = largest.nbytes + tables, largest.what
    if tables:
        what = f"{what}, beside what is known of {len(source.infos()):,} tensors"
    if nbytes > _usable(work.memory):
        needed = nbytes * 9 // 8
        raise BudgetError(
            f"{largest.kind} {shown(largest.name)} needs {needed:,} bytes of memory ({what}), and {work.memory:,} "
            f"are allowed; allow as much with memory={((needed >> 20) + 1) << 20} (--memory {(needed >> 20) + 1}MiB)"
        )
    counting = max((_counting_nbytes(key) for key, _ in plan.groups()), default=0)
    finding = max((_finding_nbytes(plan, work.crew, *group) for group in _groups(plan)), default=0)
    return counting + finding + tables


def _needs(source: TensorSource, plan: Plan, work: Work) -> Iterator[_Need]:
    infos = source.infos()
    for key, profile, names in _groups(plan):
        task = _local_task_nbytes(work.crew, profile, key, infos[names[0]])
        codes = _group_code_nbytes(work.crew, key, profile, names)
        yield _Need(_counting_nbytes(key) + max(codes, task), names[0], f"group {key}")
        fed_back = _fed_back(plan, names)
        if fed_back:
            yield _Need(task + feedback_nbytes(key.shape[1]), fed_back[0], "feedback")
    for name in plan.kept():
        yield _Need(2 * infos[name].row_nbytes, name, "one row")
    file_nbytes = source.files()
    for name in plan.files:
        yield _Need(2 * file_nbytes[name], name, "whole", "side file")


def _groups(plan: Plan) -> Iterator[tuple[PaletteGroupKey, Profile, list[str]]]:
    for (key, profile), names in plan.groups().items():
        yield key, profile, names


def _fed_back(plan: Plan, names: list[str]) -> list[str]:
    """Return the tensors whose rounding errors are fed back, which takes their columns' moments."""
    return [name for name in names if name in plan.moments]


def _counting_nbytes(key: PaletteGroupKey) -> int:
    """Return the bytes of a group's cosines, which are counted by millionths: few of them differ, however many rows."""
    return 4 * 8 * min(key.shape[0], _COUNTED_ROWS) + _HISTOGRAM_NBYTES


def _group_code_nbytes(crew: Crew, key: PaletteGroupKey, profile: Profile, names: list[str]) -> int:
    """Return the bytes that finding what a group shares takes here."""
    return 0 if crew.remote else profile.codec.finding_nbytes(key, len(names))


def _finding_nbytes(plan: Plan, crew: Crew, key: PaletteGroupKey, profile: Profile, names: list[str]) -> int:
    feedback = feedback_nbytes(key.shape[1]) if _fed_back(plan, names) else 0
    return max(_group_code_nbytes(crew, key, profile, names), feedback)


def _local_task_nbytes(crew: Crew, profile: Profile, key: PaletteGroupKey, info: TensorInfo) -> int:
    """Return the bytes that a task takes here: all of them, or its result if other machines do the work."""
    if crew.remote:
        return 2 * profile.codec.result_nbytes(*key.shape)
    return profile.codec.task_nbytes(profile, *key.shape, info.row_nbytes)


def _usable(memory: int) -> int:
    """Return what may be allocated if a process is to stay below `memory`: what it frees is not given back at once."""
    return memory * 8 // 9


def expected_nbytes(source: TensorSource, plan: Plan, work: Work) -> int:
    """Return the bytes that encoding will take at most, beside what the interpreter takes: `memory` or less."""
    infos, most = source.infos(), 0
    for key, profile, names in _groups(plan):
        task = _local_task_nbytes(work.crew, profile, key, infos[names[0]])
        n_tasks = len(names) * -(-key.shape[0] // profile.codec.span_rows(key.shape[1]))
        most = max(most, task * min(2 * work.crew.jobs, n_tasks))
    return min(work.memory, (check_memory(source, plan, work) + most) * 9 // 8)


class TaskMemory:
    """The memory that is left for tasks.

    Parameters
    ----------
    source, plan, work
        As in `check_memory`, which is called.
    """

    def __init__(self, source: TensorSource, plan: Plan, work: Work) -> None:
        self._infos, self._crew = source.infos(), work.crew
        self._nbytes = _usable(work.memory) - check_memory(source, plan, work)

    def has_room(self, key: PaletteGroupKey, profile: Profile, name: str) -> bool:
        """Whether there is memory for a task of a group, of which `name` is a tensor."""
        return self._nbytes >= _local_task_nbytes(self._crew, profile, key, self._infos[name])

    def n_tasks(self, key: PaletteGroupKey, profile: Profile, name: str) -> int:
        """Return how many tasks of a group may have begun and not been written."""
        task = _local_task_nbytes(self._crew, profile, key, self._infos[name])
        return max(1, min(2 * self._crew.jobs, self._nbytes // task))
