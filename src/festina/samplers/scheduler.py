"""`PlanScheduler`: a diffusers scheduler whose every step is a linear combination with weights known beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from festina.errors import FestinaError
from festina.samplers.compiling import compile_table
from festina.samplers.frames import NoiseLevel
from festina.samplers.grids import asked_grid, shifted_table, solver_table
from festina.samplers.run import SamplerRun
from festina.samplers.sources import SOURCES, frame_of, make_source, original_source
from festina.samplers.table import SolverTable, check_solver

__all__ = ["PlanScheduler"]

# A pipeline that reads this key as true throws the caller's noise levels away.
_HIDDEN = ("use_flow_sigmas",)


class PlanScheduler(SchedulerMixin, ConfigMixin):
    """A scheduler that runs a `SolverTable`, or one solver on the grid of the scheduler whose place it takes.

    It calls the network once per entry of `timesteps`, is deterministic, keeps outputs in float32 (float64 for a sample
    in float64), and returns samples in the sample's dtype. `config` also shows the settings of that scheduler, for
    pipelines to read: not all of them, so that another scheduler is made of `source_scheduler.config`.

    Args:
        source: class name of the scheduler whose place it takes, one of `festina.samplers.SOURCES`.
        source_config: that scheduler's config.
        solver: without a table, the solver of every step, a name of `festina.samplers.KINDS`.
        solver_order: without a table, its order, lowered in the first steps.
        corrector: without a table, whether every step but the first corrects its sample (UniC, 2302.04867).
        lower_order_final: without a table, whether a step's order is at most the number of steps left.
        largest_step_ratio: without a table, a step longer than this many times the last one, a number above 0, takes an
            order less; None = never.
        table: a `SolverTable.to_json()`; None = no table.

    Attributes:
        noised: whether noise was put on pictures since `set_timesteps`.

    Raises:
        FestinaError: a scheduler, setting, solver or table that is not known here.
    """

    # Whose settings a saved config shows: diffusers passes over these when it loads one, and warns about others.
    _compatibles: ClassVar[list[str]] = list(SOURCES)
    order = 1

    def __init__(
        self,
        source: str = "",
        source_config: Mapping[str, Any] | None = None,
        solver: str = "data",
        solver_order: int = 2,
        corrector: bool = False,
        lower_order_final: bool = True,
        largest_step_ratio: float | None = None,
        table: Mapping[str, Any] | None = None,
    ) -> None:
        self.register_to_config(
            source=source,
            source_config=dict(source_config or {}),
            solver=solver,
            solver_order=solver_order,
            corrector=corrector,
            lower_order_final=lower_order_final,
            largest_step_ratio=largest_step_ratio,
            table=table,
        )
        made = make_source(source, self.config.source_config)
        self.frame = frame_of(made)
        self.table = None if table is None else SolverTable.from_json(table).checked(self.frame)
        check_solver(solver, solver_order, corrector, largest_step_ratio)
        shown = {key: value for key, value in made.config.items() if key not in self.config and key not in _HIDDEN}
        self.register_to_config(**{key: value for key, value in shown.items() if not key.startswith("_")})
        # Pipelines multiply the latents that they are given by it, and given ones already lie at their level.
        given = self.table is not None and self.table.start == "given"
        self.init_noise_sigma = 1.0 if given else self.frame.initial_scale
        self.num_inference_steps: int | None = None
        self.timesteps = made.timesteps
        self.sigmas = torch.zeros(0)
        self.noised = False
        self._run_table: SolverTable | None = None
        self._run: SamplerRun | None = None
        self._step_index: int | None = None
        self._begin_index: int | None = None

    @classmethod
    def from_scheduler(
        cls,
        other: Any,
        table: SolverTable | None = None,
        solver: str = "data",
        solver_order: int = 2,
        corrector: bool = False,
        lower_order_final: bool = True,
        largest_step_ratio: float | None = None,
    ) -> PlanScheduler:
        """A scheduler in the place of another (if a `PlanScheduler`: of its source); see the class for the arguments.

        Raises:
            FestinaError: a scheduler, setting, solver or table that is not known here.
        """
        if isinstance(other, cls):
            name, config = other.config.source, other.config.source_config
        else:
            name, config = type(other).__name__, other.config
        return cls(
            source=name,
            source_config={key: _plain(value) for key, value in config.items() if not key.startswith("_")},
            solver=solver,
            solver_order=solver_order,
            corrector=corrector,
            lower_order_final=lower_order_final,
            largest_step_ratio=largest_step_ratio,
            table=None if table is None else table.to_json(),
        )

    def __len__(self) -> int:
        return self.frame.train_steps

    @property
    def source_scheduler(self) -> Any:
        """The scheduler whose place this one takes, made anew with its own settings."""
        return original_source(self.config.source, self.config.source_config)

    @property
    def compatibles(self) -> list[type]:
        """None: no class can be made of `config` alone. Use `source_scheduler.config`."""
        return []

    @property
    def step_index(self) -> int | None:
        """Entry of `timesteps` that the next `step` makes; None before the run's first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Entry of `timesteps` that the run begins at; None until it is set."""
        return self._begin_index

    @property
    def run_table(self) -> SolverTable | None:
        """The steps of the current run, levels after any shift; None before `set_timesteps`.

        What plans a sampler can begin with it: change its steps, and make a scheduler of the changed table.
        """
        return self._run_table

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the run at an entry of `timesteps`; outputs before it are not there, and orders are lowered for it."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Begin a run.

        Args:
            num_inference_steps: steps. With a table: its steps or its network calls.
            device: of `timesteps`.
            timesteps: network times of one's own, fractions kept, used as they are. Not with a table.
            sigmas: noise levels of one's own; flow models' are before the shift, which is applied once. With a table
                they are not used, only counted, since several pipelines always pass them.
            mu: of a shift that depends on the size of the picture.

        Raises:
            FestinaError: not exactly one of steps, timesteps and sigmas; or, with a table, timesteps or another number.
        """
        source = make_source(self.config.source, self.config.source_config)
        if self.table is not None:
            table = shifted_table(source, self.table, num_inference_steps, timesteps, sigmas, mu)
        else:
            grid = asked_grid(source, self.frame, num_inference_steps, timesteps, sigmas, mu)
            table = solver_table(
                grid,
                self.frame,
                self.config.solver,
                self.config.solver_order,
                self.config.corrector,
                self.config.lower_order_final,
                self.config.largest_step_ratio,
            )
        compiled = compile_table(table, self.frame)
        times = [slot.network_time for slot in compiled.slots]
        whole = self.frame.family == "variance_preserving" and all(time == int(time) for time in times)
        self.timesteps = torch.tensor(times, dtype=torch.int64 if whole else torch.float32, device=device)
        self.sigmas = torch.tensor(compiled.noises, dtype=torch.float32)
        self.num_inference_steps = len(times)
        self._run_table, self._run, self.noised = table, None, False
        self._step_index = self._begin_index = None

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor) -> torch.Tensor:
        """The sample as the network wants it: scaled for EDM, otherwise the sample itself."""
        if self.frame.family != "edm":
            return sample
        index = self._begin(timestep) if self._step_index is None else self._step_index
        return sample * self.frame.input_scale(self.frame.level(float(self.sigmas[index])))

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | float
    ) -> torch.Tensor:
        """Pictures with the noise of timesteps, one per picture or one for all; any shape, batch first."""
        times = torch.as_tensor(timesteps).reshape(-1).tolist()
        levels = [self._level_at(float(time)) for time in times]
        self.noised = True
        shape = (-1, *[1] * (original_samples.ndim - 1))
        alphas = original_samples.new_tensor([level.alpha for level in levels]).reshape(shape)
        scales = original_samples.new_tensor([level.sigma for level in levels]).reshape(shape)
        return alphas * original_samples + scales * noise.to(original_samples)

    def scale_noise(
        self, sample: torch.Tensor, timestep: float | torch.Tensor, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`add_noise` under the name and with the order of arguments that flow pipelines use."""
        if noise is None:
            raise FestinaError("scale_noise needs noise to add. Pass it.")
        return self.add_noise(sample, noise, timestep)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """The next sample.

        Args:
            model_output: raw output of the network, of the sample's shape.
            timestep: entry of `timesteps`; looked at in a run's first step only, and there only where no begin index
                was set. Steps are counted.
            sample: current sample.
            generator: accepted for pipelines that pass one; nothing is drawn.
            return_dict: whether to return a `SchedulerOutput`, otherwise a tuple.
            eta, use_clipped_model_output: of DDIM, which some pipelines pass: 0, and None or False.

        Raises:
            FestinaError: DDIM's noise or clipping was asked for, no `set_timesteps` before it, a step after the last
                one, an output of another shape, or a run from noise by a table whose first level is not that of the
                first sample.
        """
        if eta != 0 or use_clipped_model_output:
            raise FestinaError(
                f"eta {eta:g} and use_clipped_model_output {use_clipped_model_output} were asked for, but a "
                "PlanScheduler adds no noise and clips nothing. Leave both alone, or keep the pipeline's scheduler."
            )
        index = self._begin(timestep) if self._step_index is None else self._step_index
        assert self._run is not None
        result = self._run.step(model_output, sample)
        self._step_index = index + 1
        return SchedulerOutput(prev_sample=result) if return_dict else (result,)

    def _begin(self, timestep: float | torch.Tensor) -> int:
        """Entry that the run begins at; recompiles the table if that is not the first."""
        if self._run_table is None:
            raise FestinaError("no run was begun. Call set_timesteps before the first step.")
        index = self._begin_index if self._begin_index is not None else self._index_of(float(timestep))
        if self.table is not None and index == 0:
            self._run_table.want_start(self.frame)
        self._run = SamplerRun(compile_table(self._run_table, self.frame, index), self.frame)
        self._step_index = index
        return index

    def _index_of(self, timestep: float) -> int:
        times, wanted = self.timesteps.tolist(), torch.tensor(timestep, dtype=torch.float32).item()
        if wanted in times:
            return int(times.index(wanted))
        raise FestinaError(f"{timestep:g} is none of the run's timesteps. Pass an entry of scheduler.timesteps.")

    def _level_at(self, timestep: float) -> NoiseLevel:
        """Level of a timestep: that of the run's entry with this time, otherwise by the training schedule."""
        if self._run_table is not None:
            first = self._step_index if self._step_index is not None else self._begin_index or 0
            times = self.timesteps.tolist()
            for index in [*range(first, len(times)), *range(first)]:
                if times[index] == timestep:
                    return self.frame.level(float(self.sigmas[index]))
        return self.frame.level(self.frame.noise_at(timestep))


def _plain(value: Any) -> Any:
    """A setting as JSON has it; betas come as arrays too."""
    return value.tolist() if isinstance(value, np.ndarray) else value
