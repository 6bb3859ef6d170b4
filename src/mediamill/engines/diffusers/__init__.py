"""Diffusion models on diffusers' own pipeline classes: one file here for each family, shared loading and delivery.

Importing this package imports no GPU library; running a job does.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import cache
from typing import Any

from mediamill import catalog
from mediamill.catalog import Entry
from mediamill.engines.diffusers import decode, locate, memory, output, pull
from mediamill.engines.diffusers.chosen import configured, entries_for, family_of
from mediamill.engines.diffusers.geometry import Frame
from mediamill.engines.diffusers.locate import Located
from mediamill.engines.diffusers.memory import Need, Placement
from mediamill.engines.diffusers.pace import Pace
from mediamill.engines.diffusers.plans import Family, Plan
from mediamill.engines.diffusers.relay import relay
from mediamill.engines.diffusers.residency import Key, Loaded, Residency
from mediamill.engines.diffusers.steps import Call, Steps
from mediamill.errors import EngineFailed, MediamillError, ModelUnavailable, NotImplementedYet, OutOfMemory
from mediamill.model import EngineContext, Event, OutputData, OutputFile, Phase, Progress, Work

__all__ = ["DiffusersEngine", "create", "entries_for", "family_of"]

log = logging.getLogger("mediamill.engines.diffusers")

_FRAMES_AHEAD = 16


def create(settings: Mapping[str, str]) -> DiffusersEngine:
    """The engine. Settings by upper-case name: DEVICE, DTYPE, MODEL_NAME, MEDIAMILL_MODEL_*, HF_*."""
    return DiffusersEngine(settings)


class DiffusersEngine:
    """Runs any catalog entry whose weights are a diffusers pipeline. Calls may overlap; loaded modules are shared."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        """`settings`: see `create`."""
        self._settings = dict(settings)
        self._residency = Residency(ttl_s=float(self._settings.get("MEDIAMILL_MODEL_TTL_SECONDS") or 600))

    def held(self) -> Sequence[str]:
        """Catalog entries whose weights are loaded."""
        return self._residency.names()

    def begin_imports(self) -> bool:
        """See SlowToImport."""
        pipelines = set(self._pipelines_at_hand())
        if pipelines:
            threading.Thread(target=_import_pipelines, args=(pipelines,), name="imports", daemon=True).start()
        return bool(pipelines)

    def _pipelines_at_hand(self) -> Iterator[str]:
        for entry in catalog.load().values():
            if entry.weights is not None:
                with suppress(ModelUnavailable, NotImplementedYet):
                    family_of(entry.weights)
                    source = configured(entry, self._settings, ask_hub=False)
                    yield locate.located(source, self._settings, name=entry.name).pipeline

    def close(self) -> None:
        """Let go of every loaded model."""
        self._residency.close()

    def run(self, work: Work, ctx: EngineContext) -> Iterator[Event]:
        """See Engine. The call itself runs in a thread, so that events leave while it computes."""
        stopped = threading.Event()

        def job(say: Callable[[Event], None]) -> None:
            self._job(Call(work, ctx.scratch, lambda: ctx.cancelled.is_set() or stopped.is_set(), say))

        yield from relay(job, stop=stopped.set)

    def _job(self, call: Call) -> None:
        """Check, place, load, generate. An error of a library becomes one of ours once its traceback is gone."""
        entry = catalog.get(call.work.model)
        if entry.weights is None:
            raise NotImplementedYet(f"{entry.name} does not run on diffusers.")
        family = family_of(entry.weights)
        call.say(Progress(0.0, Phase.LOADING, f"looking for the weights of {entry.name}"))
        found = self._found(call, entry)
        begun_s = time.perf_counter()
        _import_libraries()
        call.note("import_s", begun_s)  # what is left of it, where it began before the job
        locate.check_class(found, family.PIPELINES, name=entry.name)
        plan = family.plan(call.work, entry.weights, found)
        place, needed, budget = self._placed(entry, plan, found)
        call.check_cancelled()
        try:
            self._loaded_and_generated(call, entry, found, (family, plan), (place, needed, budget))
        except MediamillError:
            raise
        except Exception as error:  # noqa: BLE001 - a pipeline may raise anything; here it becomes one of our errors
            failure = _translated(error, entry, plan)
        else:
            return
        # Here the traceback no longer holds the call's tensors: the next job starts clean.
        self._residency.drop_unused(older_than_s=1.0)
        memory.give_back(place.device)
        raise failure

    def _found(self, call: Call, entry: Entry) -> Located:
        """The weights, fetched first where they may be."""
        source = configured(entry, self._settings)
        try:
            return locate.located(source, self._settings, name=entry.name)
        except ModelUnavailable:
            if not pull.allowed(source):
                raise

        def told(done_bytes: int, total_bytes: int) -> None:
            call.check_cancelled()
            of = f"{done_bytes / 1024**3:.1f} of {total_bytes / 1024**3:.1f} GiB"
            call.say(Progress(0.0, Phase.LOADING, f"downloading {source}, once: {of}"))

        pull.pull(source, self._settings, on_bytes=told)
        return locate.located(source, self._settings, name=entry.name)

    def _placed(self, entry: Entry, plan: Plan, found: Located) -> tuple[Placement, Need, int]:
        """Where the weights go. Raises OutOfMemory when this request cannot fit, before anything is loaded."""
        wanted = memory.placement(self._settings)
        size = memory.torch_dtype(wanted.dtype).itemsize
        needed = memory.need(found, size, plan.activations_bytes * size // 2)
        budget = memory.budget_bytes(wanted.device, self._settings)
        place = memory.choose(wanted, needed, budget, name=entry.name, lower=plan.lower, low_vram=plan.low_vram)
        return place, needed, budget

    def _loaded_and_generated(
        self,
        call: Call,
        entry: Entry,
        found: Located,
        how: tuple[Family, Plan],
        where: tuple[Placement, Need, int],
    ) -> None:
        place, needed, budget = where
        key = Key(found.path, place)
        if not self._residency.holds(key):
            size = f"{needed.weights_bytes / 1024**3:.2f} GiB"
            call.say(Progress(0.01, Phase.LOADING, f"loading {entry.name} ({size})"))
        room = needed.offloaded_bytes if place.offload else needed.resident_bytes
        begun_s = time.perf_counter()
        with self._residency.using(
            key, name=entry.name, pipeline=found.pipeline, room_bytes=room, budget=budget
        ) as loaded:
            call.note("load_s", begun_s)
            call.check_cancelled()
            with loaded.one_at_a_time if place.offload else nullcontext():
                _generate(call, how[0], how[1], loaded)


def _generate(call: Call, family: Family, plan: Plan, loaded: Loaded) -> None:
    import torch

    remembered_as = f"tail_s {plan.grid_width_px}x{plan.grid_height_px}x{plan.grid_frames}"
    begun_s = time.perf_counter()
    pace = Pace(plan.steps, tail_s=loaded.remembered.get(remembered_as))
    shell = loaded.shell(plan.pipeline, steps=plan.steps)
    generator = torch.Generator("cpu").manual_seed(plan.seed)  # the same noise on every device
    steps = Steps(call, family, plan, loaded, pace)
    try:
        frames = family.generate(shell, plan, callback=steps, generator=generator)
        file = _delivered(call, plan, pace, frames)
    finally:
        if loaded.key.placement.offload:
            shell.maybe_free_model_hooks()
    call.note("inference_s", begun_s)
    loaded.remembered[remembered_as] = pace.tail_s()
    call.say(file)
    call.say(OutputData(_facts(call, plan, loaded.key.placement) | _cut_prompts(shell, plan)))
    call.say(Progress(1.0))


def _facts(call: Call, plan: Plan, place: Placement) -> dict[str, Any]:
    return {
        "seed": plan.seed,
        "steps": plan.steps,
        "device": place.device,
        "dtype": place.dtype,
        "offloaded": place.offload,
        "seconds": dict(call.timings),
        **plan.facts,
    }


def _cut_prompts(shell: Any, plan: Plan) -> dict[str, Any]:
    """Warnings about prompts of which the pipeline reads only the beginning."""
    limit = inspect.signature(type(shell).__call__).parameters.get("max_sequence_length")
    tokenizer = getattr(shell, "tokenizer", None)
    if limit is None or tokenizer is None:
        return {}
    texts = {name: plan.call.get(name) or "" for name in ("prompt", "negative_prompt")}
    counts = {name: len(tokenizer(text, truncation=False, verbose=False).input_ids) for name, text in texts.items()}
    told = [
        f"{name}: the model reads the first {limit.default} tokens of {count}."
        for name, count in counts.items()
        if count > limit.default
    ]
    return {"warnings": told} if told else {}


def _delivered(call: Call, plan: Plan, pace: Pace, frames: Iterator[Frame]) -> OutputFile:
    """The finished file. A video's pipeline runs ahead in its own thread while the encoder takes frames."""
    import torch

    kind: dict[str, Any] = {"width_px": plan.width_px, "height_px": plan.height_px, "fps": plan.fps}
    if plan.fps is None:
        with torch.no_grad():
            return output.write(_counted(call, plan, pace, frames), call.scratch, **kind)
    ahead = decode.Ahead(frames, depth=_FRAMES_AHEAD)
    try:
        return output.write(_counted(call, plan, pace, ahead), call.scratch, **kind)
    finally:
        ahead.close()


def _counted(call: Call, plan: Plan, pace: Pace, frames: Iterator[Frame]) -> Iterator[Frame]:
    """The same frames, with progress and cancel; raises EngineFailed unless they are as many as planned."""
    done = 0
    for done, frame in enumerate(frames, start=1):
        call.check_cancelled()
        call.say(pace.frame(done, plan.frames))
        yield frame
    if done != plan.frames:
        raise EngineFailed(f"The model made {done} frames instead of {plan.frames}.")


def _translated(error: BaseException, entry: Entry, plan: Plan) -> MediamillError:
    if memory.is_out_of_memory(error):
        return OutOfMemory(f"Out of memory while running {entry.name}. {plan.lower}")
    log.error("%s failed", entry.name, exc_info=error)
    return EngineFailed(f"{entry.name} failed: {type(error).__name__}.", log_tail=str(error)[-4000:])


_IMPORTING = threading.RLock()
"""Imports that two threads begin at once may see each other's modules half made."""


def _import_pipelines(names: Collection[str]) -> None:
    """Also the classes of these pipelines, a quarter of all there is to import."""
    with _IMPORTING, suppress(ModelUnavailable):
        _import_libraries()
        diffusers = importlib.import_module("diffusers")
        for name in sorted(names):
            getattr(diffusers, name, None)


def _import_libraries() -> None:
    """Import what takes seconds, silence its bars; waits for whoever does so already.

    Raises: ModelUnavailable where the extra is not installed.
    """
    with _IMPORTING:
        _import_once()


@cache
def _import_once() -> None:
    try:
        import torch  # noqa: F401 - the slow part of a cold start, measured as such
        from diffusers.utils import logging as diffusers_log
        from transformers.utils import logging as transformers_log
    except ImportError as error:
        raise ModelUnavailable("Diffusion models need more packages: install mediamill[diffusers].") from error
    libraries: tuple[Any, Any] = (diffusers_log, transformers_log)
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
