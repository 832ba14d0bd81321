"""Listening to a scheduler: where a run begins, where a step ends. On the instance, and on deep copies made of it.

Several pipelines drive a deep copy of their scheduler, or two at once (for picture and sound). A copy of an accelerated
scheduler listens like it, each method bound to the copy; of several copies the first to step counts the steps.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable
from typing import Any

from festina.errors import FestinaError
from festina.executor.calls import Arguments, entry_given, entry_of
from festina.executor.patch import Wrapper
from festina.executor.run import Run

MARK = "_festina"
"""Attribute of an accelerated scheduler (and denoiser): what ties it to its run."""


class Link:
    """What ties a scheduler, and every deep copy of it, to a run.

    Attributes:
        run: the run; None after the plan was removed.
        copies: the deep copies that are in use.
    """

    def __init__(self, run: Run) -> None:
        self.run: Run | None = run
        self.copies: weakref.WeakSet[Any] = weakref.WeakSet()
        self._counting: Any = None
        self._entry: int | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Link:
        return self

    def __reduce__(self) -> Any:
        # A pickled scheduler leaves its run behind.
        return type(None), ()

    def start(self, scheduler: Any, asked: str) -> None:
        """A scheduler has been told how many steps to make."""
        if self.run is None:
            return
        self._counting = self._entry = None
        schedule = scheduler.timesteps
        made_by = f"{type(scheduler).__name__} makes {len(schedule)} for {asked}"
        order = getattr(scheduler, "order", 1)
        if order != 1:
            made_by += f", as it calls the denoiser {order} times a step"
        self.run.start(len(schedule), made_by, schedule)

    def begin_at(self, entry: Any) -> None:
        """A scheduler has been told at which of its timesteps to begin."""
        if self.run is not None and entry is not None:
            self.run.begin_at(int(entry))

    def carried(self, sample: Any) -> Any:
        """The sample that a scheduler steps from, as the run wants it: in its first step perhaps another one."""
        run = self.run
        if run is None or run.teleport is None or not run.clock.running or not run.teleport.due(run.clock):
            return sample
        return run.teleport.of(sample)

    def revised(self, scheduler: Any, timestep: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """The arguments of a scheduler's step as the run wants them: with another output of the denoiser, if any."""
        run = self.run
        if run is None or run.revise is None or not run.clock.running or self._counting not in (None, scheduler):
            return args, kwargs
        if self._again(_entry_ahead(scheduler, timestep)):
            return args, kwargs
        if "model_output" in kwargs:
            return args, {**kwargs, "model_output": run.revise(kwargs["model_output"])}
        return (run.revise(args[0]), *args[1:]), kwargs

    def end_step(self, scheduler: Any, timestep: Any, sample: Any, result: Any) -> Any:
        """A scheduler has made a step from a sample; returns what it shall return for it."""
        if self.run is None or not self.run.clock.running:
            return result
        if self._counting is None:
            self._counting = scheduler
        entry = _entry_made(scheduler, timestep)
        if self._counting is not scheduler or self._again(entry):
            return result
        if not self.run.clock.ended:
            self.run.stepped_on(sample)
        self._entry = entry
        begun = self.run.clock.first is not None
        return self.run.next_step(0 if begun else _first_entry(scheduler, timestep, entry), result)

    def _again(self, entry: int | None) -> bool:
        """Whether a step from this timestep has ended: some pipelines step to a prediction, and then with it."""
        return entry is not None and entry == self._entry

    def cut(self) -> None:
        """The plan is removed: forget the run and take what listens off the copies."""
        self.run = self._counting = None
        for scheduler in list(self.copies):
            for name, value in list(vars(scheduler).items()):
                if isinstance(value, Listening) and value.link is self:
                    value.take_off(name)
            vars(scheduler).pop(MARK, None)


class Listening(Wrapper):
    """A method of a scheduler that also tells the run."""

    __slots__ = ("_tell", "added", "link", "owner")

    def __init__(self, link: Link, owner: Any, name: str, tell: Callable[..., Any], original: Any = None) -> None:
        super().__init__(tell, getattr(owner, name) if original is None else original)
        self.link, self.owner, self._tell, self.__name__ = link, owner, tell, name
        self.added = name not in vars(owner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._tell(self, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = memo.get(id(self.owner))
        if twin is None:
            return self  # the attributes of the scheduler are copied, not the scheduler
        original = copy.deepcopy(self.__wrapped__, memo)
        if self.link.run is None:
            return original
        made = Listening(self.link, twin, self.__name__, self._tell, original)
        made.added = self.added
        self.link.copies.add(twin)
        return made

    def take_off(self, name: str) -> None:
        """Give the copy its own method back."""
        if self.added:
            del vars(self.owner)[name]
        else:
            vars(self.owner)[name] = self.__wrapped__


def starting_run(link: Link, scheduler: Any) -> Listening:
    """`set_timesteps` that starts a run."""

    def set_timesteps(method: Listening, *args: Any, **kwargs: Any) -> Any:
        result = method.__wrapped__(*args, **kwargs)
        method.link.start(method.owner, _asked(args, kwargs))
        return result

    return Listening(link, scheduler, "set_timesteps", set_timesteps)


def beginning_midway(link: Link, scheduler: Any) -> Listening:
    """`set_begin_index` that tells the run at which step it begins."""

    def set_begin_index(method: Listening, *args: Any, **kwargs: Any) -> Any:
        result = method.__wrapped__(*args, **kwargs)
        method.link.begin_at(args[0] if args else kwargs.get("begin_index", 0))
        return result

    return Listening(link, scheduler, "set_begin_index", set_begin_index)


def ending_step(link: Link, scheduler: Any) -> Listening:
    """`step` that ends a step of the run, and the run itself if it fails."""
    parameters = list(inspect.signature(scheduler.step).parameters)
    places: dict[str, int] = {}
    for name in ("timestep", "sample"):
        if name in parameters:
            places[name] = parameters.index(name)

    def given(name: str, usual: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        place = places.get(name, usual)
        return kwargs[name] if name in kwargs else args[place] if place < len(args) else None

    def changed(args: tuple[Any, ...], kwargs: dict[str, Any], sample: Any) -> Arguments:
        place = places.get("sample", 2)
        if "sample" in kwargs:
            return args, {**kwargs, "sample": sample}
        return (*args[:place], sample, *args[place + 1 :]), kwargs

    def step(method: Listening, *args: Any, **kwargs: Any) -> Any:
        try:
            timestep, sample = given("timestep", 1, args, kwargs), given("sample", 2, args, kwargs)
            args, kwargs = method.link.revised(method.owner, timestep, args, kwargs)
            if (carried := method.link.carried(sample)) is not sample:
                sample = carried
                args, kwargs = changed(args, kwargs, carried)
            result = method.__wrapped__(*args, **kwargs)
            return method.link.end_step(method.owner, timestep, sample, result)
        except BaseException:
            if method.link.run is not None:
                method.link.run.abort()
            raise

    return Listening(link, scheduler, "step", step)


def _asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What a scheduler was asked for, in words."""
    number = args[0] if args else kwargs.get("num_inference_steps")
    if isinstance(number, int):
        return f"num_inference_steps={number}"
    given = [f"{len(kwargs[name])} {name}" for name in ("sigmas", "timesteps") if kwargs.get(name) is not None]
    return " and ".join(given) or "this call"


def _entry_ahead(scheduler: Any, timestep: Any) -> int | None:
    """Which of its timesteps a scheduler is about to go through, None if that is not known without reading values."""
    index = getattr(scheduler, "step_index", None)
    if isinstance(index, int) and index > 0:
        return index
    return entry_given(scheduler.timesteps, [timestep])


def _entry_made(scheduler: Any, timestep: Any) -> int | None:
    """Which of its timesteps a scheduler has just gone through, None if that is not known without reading values."""
    index = getattr(scheduler, "step_index", None)
    if isinstance(index, int) and index > 0:
        return index - 1
    return entry_given(scheduler.timesteps, [timestep])


def _first_entry(scheduler: Any, timestep: Any, entry: int | None) -> int:
    """Which of its timesteps a scheduler has gone through in the first step of a run."""
    if entry is None and timestep is not None:
        entry = entry_of(scheduler.timesteps, timestep)
    if entry is None:
        raise FestinaError(
            f"cannot tell at which of its {len(scheduler.timesteps)} timesteps {type(scheduler).__name__} began; give "
            f"the pipeline a scheduler with a step_index, such as EulerDiscreteScheduler."
        )
    return entry
