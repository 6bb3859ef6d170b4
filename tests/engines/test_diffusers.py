"""The diffusers engine on real pipeline classes with tiny weights."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from mediamill import catalog
from mediamill.engines import diffusers as engine_module
from mediamill.engines.diffusers import DiffusersEngine, family_of, locate
from mediamill.engines.diffusers.memory import Placement
from mediamill.engines.diffusers.residency import Key, Residency
from mediamill.errors import Cancelled, EngineFailed, MediamillError, ModelUnavailable, NotImplementedYet, OutOfMemory
from mediamill.media.probe import inspect, probe
from mediamill.model import EngineContext, Phase, Progress, Work
from tests.fixtures_tiny import run, work_of
from tests.tiny_pipelines import build_ltx_video, poison

SMALL_IMAGE: Mapping[str, Any] = {"prompt": "a red fox", "width": 64, "height": 64, "steps": 2, "seed": 7}
SMALL_CLIP: Mapping[str, Any] = {
    "prompt": "a red fox",
    "width": 64,
    "height": 64,
    "num_frames": 9,
    "num_inference_steps": 2,
    "seed": 7,
}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).copy()


def video_frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [
            f.reformat(format="rgb24", src_colorspace="ITU709", src_color_range="MPEG").to_ndarray()
            for f in container.decode(video=0)
        ]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stock(folder: Path, cls: str, **call: Any) -> np.ndarray:
    """What diffusers itself makes of a call, 8 bits: (H, W, 3) or (F, H, W, 3)."""
    import diffusers
    import torch

    pipe = getattr(diffusers, cls).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(**call, generator=torch.Generator().manual_seed(7), output_type="np")[0][0]
    return np.rint(made * 255).astype(np.uint8)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (72, 100), (65, 79)])
def test_a_picture_has_the_size_asked_for_whatever_the_grid(
    diffusers_engine: DiffusersEngine, tmp_path: Path, width: int, height: int
) -> None:
    ran = run(diffusers_engine, tmp_path, work_of("zimage", **{**SMALL_IMAGE, "width": width, "height": height}))
    assert ran.file.name == "output.png"
    facts = probe(ran.file.path, media_type=ran.file.media_type)
    assert (facts.width_px, facts.height_px) == (width, height)


@pytest.mark.parametrize(("width", "height", "frames", "fps"), [(64, 64, 9, 8), (72, 98, 10, 24), (96, 64, 1, 30)])
def test_a_clip_has_the_size_frames_and_rate_asked_for(
    diffusers_engine: DiffusersEngine, tmp_path: Path, width: int, height: int, frames: int, fps: int
) -> None:
    asked = {**SMALL_CLIP, "width": width, "height": height, "num_frames": frames, "fps": fps}
    ran = run(diffusers_engine, tmp_path, work_of("ltx-video", **asked))
    facts = probe(ran.file.path, media_type="video/mp4")
    assert (facts.width_px, facts.height_px, facts.frames, facts.fps) == (width, height, frames, fps)
    assert facts.video_codec == "h264"
    assert facts.duration_s == pytest.approx(frames / fps, abs=0.001)
    colour = inspect(ran.file.path).video[0].colour
    assert (colour.matrix, colour.primaries, colour.transfer, colour.range) == (1, 1, 1, 1)  # bt709, limited


def test_a_picture_is_the_one_that_diffusers_makes(
    diffusers_engine: DiffusersEngine, tmp_path: Path, tiny_zimage: Path
) -> None:
    mine = pixels(run(diffusers_engine, tmp_path, work_of("zimage", **SMALL_IMAGE)).file.path)
    call = {"prompt": "a red fox", "width": 64, "height": 64, "num_inference_steps": 2, "guidance_scale": 0.0}
    assert np.array_equal(mine, stock(tiny_zimage, "ZImagePipeline", **call))


def test_a_crop_is_the_middle_of_the_grid(diffusers_engine: DiffusersEngine, tmp_path: Path, tiny_zimage: Path) -> None:
    mine = pixels(
        run(diffusers_engine, tmp_path, work_of("zimage", **{**SMALL_IMAGE, "width": 70, "height": 76})).file.path
    )
    call = {"prompt": "a red fox", "width": 80, "height": 80, "num_inference_steps": 2, "guidance_scale": 0.0}
    assert np.array_equal(mine, stock(tiny_zimage, "ZImagePipeline", **call)[2:78, 5:75])


@pytest.mark.parametrize("conditioned", [False, True], ids=["0.9.0", "0.9.1 decoder"])
def test_the_frames_are_those_that_diffusers_makes(tmp_path: Path, conditioned: bool) -> None:
    folder = build_ltx_video(tmp_path / "model", timestep_conditioning=conditioned)
    frames = list(
        frames_before_encoding(folder, work_of("ltx-video", **SMALL_CLIP, negative_prompt="a blue dog", fps=24))
    )
    decoder = {"decode_timestep": 0.05, "decode_noise_scale": 0.025} if conditioned else {}
    expected = stock(
        folder,
        "LTXPipeline",
        prompt="a red fox",
        negative_prompt="a blue dog",
        width=64,
        height=64,
        num_frames=9,
        frame_rate=24,
        num_inference_steps=2,
        guidance_scale=7.5,
        **decoder,
    )
    assert np.array_equal(np.stack(frames), expected)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("begins", [False, True], ids=["text", "picture"])
def test_later_checkpoints_run_as_their_own_pipeline_does(tmp_path: Path, steps: int, begins: bool) -> None:
    folder = build_ltx_video(tmp_path / "model", timestep_conditioning=True, cls="LTXConditionPipeline")
    picture = Image.new("RGB", (64, 64), "teal")
    picture.save(tmp_path / "in.png")
    inputs = {"image_url": tmp_path / "in.png"} if begins else {}
    work = work_of("ltx-video", **{**SMALL_CLIP, "num_inference_steps": steps}, inputs=inputs)
    call: dict[str, Any] = {"prompt": "a red fox", "negative_prompt": "", "width": 64, "height": 64, "num_frames": 9}
    call |= {"frame_rate": 8, "num_inference_steps": steps, "guidance_scale": 7.5}
    call |= {"decode_timestep": 0.05, "decode_noise_scale": 0.025, "image": picture if begins else None}
    if steps == 1:
        call["timesteps"] = [1000.0]
    expected = stock(folder, "LTXConditionPipeline", **call)
    assert np.array_equal(np.stack(list(frames_before_encoding(folder, work))), expected)
    own = engine_module.create({"MEDIAMILL_MODEL_LTX_VIDEO": str(folder), "DEVICE": "cpu"})
    ran = run(own, tmp_path / "s", work)
    own.close()
    assert probe(ran.file.path, media_type="video/mp4").frames == 9
    assert len(ran.previews) == max(0, steps - 2)


def frames_before_encoding(folder: Path, work: Work) -> Iterator[np.ndarray]:
    """What the family hands to the encoder."""
    import torch

    entry = catalog.get(work.model)
    assert entry.weights is not None
    family, found = family_of(entry.weights), locate.located(str(folder), {}, name=work.model)
    plan, residency = family.plan(work, entry.weights, found), Residency(ttl_s=60)
    key = Key(folder, Placement("cpu", "float32"))
    with (
        torch.no_grad(),
        residency.using(key, name=work.model, pipeline=found.pipeline, room_bytes=0, budget=2**40) as loaded,
    ):
        generator = torch.Generator().manual_seed(plan.seed)
        yield from family.generate(
            loaded.shell(plan.pipeline), plan, callback=lambda _pipe, _i, _t, kept: kept, generator=generator
        )
    residency.close()


def test_one_step_makes_a_clip_of_the_first_checkpoints_too(diffusers_engine: DiffusersEngine, tmp_path: Path) -> None:
    ran = run(diffusers_engine, tmp_path, work_of("ltx-video", **{**SMALL_CLIP, "num_inference_steps": 1}))
    assert probe(ran.file.path, media_type="video/mp4").frames == 9
    assert ran.output["steps"] == 1


def test_a_clip_shows_the_frames_in_their_order_and_colours(
    diffusers_engine: DiffusersEngine, tmp_path: Path, tiny_ltx_video: Path
) -> None:
    work = work_of("ltx-video", **{**SMALL_CLIP, "num_frames": 25})
    made = [f.mean(axis=(0, 1)) for f in frames_before_encoding(tiny_ltx_video, work)]
    shown = [f.mean(axis=(0, 1)) for f in video_frames(run(diffusers_engine, tmp_path, work).file.path)]
    assert np.abs(np.array(made) - np.array(shown)).max() < 3


@pytest.mark.parametrize(("model", "asked"), [("zimage", SMALL_IMAGE), ("ltx-video", SMALL_CLIP)])
def test_the_same_request_and_seed_give_the_same_bytes(
    diffusers_engine: DiffusersEngine,
    tmp_path: Path,
    tiny_settings: Mapping[str, str],
    model: str,
    asked: Mapping[str, Any],
) -> None:
    first = digest(run(diffusers_engine, tmp_path / "1", work_of(model, **asked)).file.path)
    again = digest(run(diffusers_engine, tmp_path / "2", work_of(model, job_id="other", **asked)).file.path)
    fresh = engine_module.create(tiny_settings)
    reloaded = digest(run(fresh, tmp_path / "3", work_of(model, **asked)).file.path)
    fresh.close()
    other = digest(run(diffusers_engine, tmp_path / "4", work_of(model, **{**asked, "seed": 8})).file.path)
    assert first == again == reloaded
    assert other != first


def test_a_seed_that_was_not_given_is_told_and_stays_for_a_second_attempt(
    diffusers_engine: DiffusersEngine, tmp_path: Path
) -> None:
    unseeded = {k: v for k, v in SMALL_IMAGE.items() if k != "seed"}
    first = run(diffusers_engine, tmp_path / "1", work_of("zimage", job_id="a", **unseeded))
    retry = run(diffusers_engine, tmp_path / "2", work_of("zimage", job_id="a", **unseeded))
    other = run(diffusers_engine, tmp_path / "3", work_of("zimage", job_id="b", **unseeded))
    assert first.output["seed"] == retry.output["seed"] != other.output["seed"]
    assert digest(first.file.path) == digest(retry.file.path) != digest(other.file.path)
    replay = run(diffusers_engine, tmp_path / "4", work_of("zimage", **unseeded, seed=first.output["seed"]))
    assert digest(replay.file.path) == digest(first.file.path)


def test_overlapping_calls_on_shared_weights_do_not_disturb_each_other(
    diffusers_engine: DiffusersEngine, tmp_path: Path
) -> None:
    works = [work_of("zimage", **{**SMALL_IMAGE, "seed": s, "steps": 2 + s % 3}) for s in range(6)]
    alone = [digest(run(diffusers_engine, tmp_path / f"a{i}", w).file.path) for i, w in enumerate(works)]
    with ThreadPoolExecutor(3) as pool:
        together = list(
            pool.map(lambda p: run(diffusers_engine, tmp_path / f"b{p[0]}", p[1]).file.path, enumerate(works))
        )
    assert [digest(p) for p in together] == alone


def test_a_negative_prompt_counts_with_guidance_and_only_then(
    diffusers_engine: DiffusersEngine, tmp_path: Path
) -> None:
    def made(name: str, **more: Any) -> str:
        return digest(run(diffusers_engine, tmp_path / name, work_of("zimage", **{**SMALL_IMAGE, **more})).file.path)

    assert made("a") == made("b", negative_prompt="blurry")
    assert made("c", guidance_scale=4) != made("d", guidance_scale=4, negative_prompt="blurry") != made("a2")


def test_a_prompt_of_which_only_the_beginning_is_read_is_told(
    diffusers_engine: DiffusersEngine, tmp_path: Path
) -> None:
    long = "xqz " * 240
    for model, asked, limit in (("zimage", SMALL_IMAGE, 512), ("ltx-video", SMALL_CLIP, 128)):
        cut = run(diffusers_engine, tmp_path / model, work_of(model, **{**asked, "prompt": long}))
        (told,) = cut.output["warnings"]
        assert told.startswith(f"prompt: the model reads the first {limit} tokens of ")
        whole = run(diffusers_engine, tmp_path / f"{model}-whole", work_of(model, **{**asked, "negative_prompt": "x"}))
        assert "warnings" not in whole.output


def test_an_input_picture_is_covered_and_followed_as_far_as_strength_lets_it(
    diffusers_engine: DiffusersEngine, tmp_path: Path
) -> None:
    tall = np.zeros((300, 64, 3), np.uint8)
    tall[118:182] = (220, 60, 40)  # the middle square is what a centre crop keeps
    Image.fromarray(tall).save(tmp_path / "in.png")
    asked = {**SMALL_IMAGE, "steps": 4}
    faint = run(
        diffusers_engine,
        tmp_path / "1",
        work_of("zimage", **asked, strength=0.25, inputs={"image_url": tmp_path / "in.png"}),
    )
    strong = run(
        diffusers_engine,
        tmp_path / "2",
        work_of("zimage", **asked, strength=1.0, inputs={"image_url": tmp_path / "in.png"}),
    )
    assert (faint.output["steps"], strong.output["steps"]) == (1, 4)
    done = [[e.message for e in ran.progress if e.phase is Phase.GENERATING] for ran in (faint, strong)]
    assert done == [["step 1 of 1"], [f"step {n} of 4" for n in range(1, 5)]]
    other = tmp_path / "other.png"
    Image.new("RGB", (64, 64), "navy").save(other)
    changed = run(
        diffusers_engine, tmp_path / "3", work_of("zimage", **asked, strength=0.25, inputs={"image_url": other})
    )
    assert digest(changed.file.path) != digest(faint.file.path)


def test_a_clip_can_begin_with_a_picture(diffusers_engine: DiffusersEngine, tmp_path: Path) -> None:
    hashes = []
    for name, colour in (("a", "white"), ("b", "black")):
        Image.new("RGB", (80, 64), colour).save(tmp_path / f"{name}.png")
        work = work_of("ltx-video", **{**SMALL_CLIP, "num_frames": 1}, inputs={"image_url": tmp_path / f"{name}.png"})
        ran = run(diffusers_engine, tmp_path / name, work)
        assert probe(ran.file.path, media_type="video/mp4").frames == 1
        hashes.append(digest(ran.file.path))
    assert hashes[0] != hashes[1]


def test_progress_rises_through_the_phases_with_previews_between(
    diffusers_engine: DiffusersEngine, tmp_path: Path
) -> None:
    ran = run(diffusers_engine, tmp_path, work_of("ltx-video", **{**SMALL_CLIP, "num_inference_steps": 9}))
    fractions = [p.fraction for p in ran.progress]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    steps = [p for p in ran.progress if p.phase is Phase.GENERATING]
    assert [p.message for p in steps] == [f"step {i} of 9" for i in range(1, 10)]
    assert all(p.eta_s is not None and p.eta_s > 0 for p in steps[1:])
    assert [p.phase for p in ran.progress if p.phase is Phase.ENCODING]
    assert [p.name for p in ran.previews] == [f"preview-{step}.png" for step in (2, 4, 6, 8)]
    assert len({digest(p.path) for p in ran.previews}) == 4
    assert all(pixels(p.path).shape == (256, 256, 3) for p in ran.previews)
    last_preview = max(i for i, e in enumerate(ran.events) if e in ran.previews)
    assert last_preview < ran.events.index(steps[-1])


def test_previews_change_nothing_of_the_result(
    diffusers_engine: DiffusersEngine, tmp_path: Path, tiny_zimage: Path
) -> None:
    ran = run(diffusers_engine, tmp_path, work_of("zimage", **{**SMALL_IMAGE, "steps": 5}))
    assert ran.previews
    call = {"prompt": "a red fox", "width": 64, "height": 64, "num_inference_steps": 5, "guidance_scale": 0.0}
    assert np.array_equal(pixels(ran.file.path), stock(tiny_zimage, "ZImagePipeline", **call))


def test_a_cancel_stops_at_the_next_step_and_the_weights_stay_usable(
    diffusers_engine: DiffusersEngine, tmp_path: Path
) -> None:
    before = digest(run(diffusers_engine, tmp_path / "1", work_of("zimage", **SMALL_IMAGE)).file.path)
    cancelled = threading.Event()
    seen: list[Progress] = []
    (tmp_path / "2").mkdir()
    context = EngineContext(tmp_path / "2", cancelled)

    def cancel_at_the_first_step() -> None:
        for event in diffusers_engine.run(work_of("zimage", **{**SMALL_IMAGE, "steps": 100}), context):
            if isinstance(event, Progress) and event.phase is Phase.GENERATING:
                seen.append(event)
                cancelled.set()

    with pytest.raises(Cancelled):
        cancel_at_the_first_step()
    assert len(seen) < 90
    assert not (tmp_path / "2" / "output.png").exists()
    after = digest(run(diffusers_engine, tmp_path / "3", work_of("zimage", **SMALL_IMAGE)).file.path)
    assert after == before


def test_a_cancel_stops_between_frames(diffusers_engine: DiffusersEngine, tmp_path: Path) -> None:
    cancelled, frames = threading.Event(), 0

    def cancel_at_the_first_frame() -> None:
        nonlocal frames
        work = work_of("ltx-video", **{**SMALL_CLIP, "num_frames": 257})
        for event in diffusers_engine.run(work, EngineContext(tmp_path, cancelled)):
            if isinstance(event, Progress) and event.phase is Phase.ENCODING:
                frames += 1
                cancelled.set()

    with pytest.raises(Cancelled):
        cancel_at_the_first_frame()
    assert 0 < frames < 257


def test_leaving_the_events_early_ends_the_work(diffusers_engine: DiffusersEngine, tmp_path: Path) -> None:
    events = diffusers_engine.run(
        work_of("zimage", **{**SMALL_IMAGE, "steps": 100}), EngineContext(tmp_path, threading.Event())
    )
    next(e for e in events if isinstance(e, Progress) and e.phase is Phase.GENERATING)
    events.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name == "diffusers"]


@pytest.mark.parametrize("component", ["transformer", "vae"])
@pytest.mark.parametrize(("model", "asked"), [("zimage", SMALL_IMAGE), ("ltx-video", SMALL_CLIP)])
def test_values_that_are_no_numbers_fail_the_job(
    tmp_path: Path,
    tiny_settings: Mapping[str, str],
    model: str,
    asked: Mapping[str, Any],
    component: str,
) -> None:
    name = f"MEDIAMILL_MODEL_{model.upper().replace('-', '_')}"
    broken = tmp_path / "model"
    shutil.copytree(tiny_settings[name], broken)
    poison(broken, component)
    own = engine_module.create({**tiny_settings, name: str(broken)})
    with pytest.raises(EngineFailed, match="NaN"):
        run(own, tmp_path / "s", work_of(model, **asked))
    own.close()
    assert not list((tmp_path / "s").glob("output.png"))


def unbounded(model: str, **params: Any) -> Work:
    """Work past the catalog's limits."""
    plain = work_of(model, **SMALL_IMAGE)
    return Work(plain.job_id, 1, model, {**plain.params, **params})


def test_a_request_that_cannot_fit_is_refused_before_anything_is_loaded(
    tmp_path: Path, tiny_settings: Mapping[str, str]
) -> None:
    own = engine_module.create({**tiny_settings, "MEDIAMILL_MODEL_MEMORY_BYTES": str(40 * 1024**2)})
    with pytest.raises(OutOfMemory, match=r"Lower width and height \(now 512x512\)"):
        run(own, tmp_path / "1", work_of("zimage", **{**SMALL_IMAGE, "width": 512, "height": 512}))
    assert own.held() == []
    assert run(own, tmp_path / "2", work_of("zimage", **SMALL_IMAGE)).file.path.stat().st_size > 0
    own.close()


def test_an_allocation_that_fails_says_what_to_lower_and_the_next_job_runs(
    tmp_path: Path, tiny_settings: Mapping[str, str]
) -> None:
    own = engine_module.create({**tiny_settings, "MEDIAMILL_MODEL_MEMORY_BYTES": str(2**62)})
    before = digest(run(own, tmp_path / "1", work_of("zimage", **SMALL_IMAGE)).file.path)
    with pytest.raises(OutOfMemory, match="Lower width and height"):
        run(own, tmp_path / "2", unbounded("zimage", width=16 * 10**6, height=16 * 10**6))
    assert digest(run(own, tmp_path / "3", work_of("zimage", **SMALL_IMAGE)).file.path) == before
    own.close()


def test_components_can_visit_the_device_one_at_a_time(tmp_path: Path, tiny_settings: Mapping[str, str]) -> None:
    import torch

    folder = Path(tiny_settings["MEDIAMILL_MODEL_ZIMAGE"])
    call = {"prompt": "a red fox", "width": 64, "height": 64, "num_inference_steps": 1, "guidance_scale": 0.0}
    made = []
    for offload in (False, True):
        residency = Residency(ttl_s=60)
        key = Key(folder, Placement("cpu", "float32", offload=offload))
        with residency.using(key, name="zimage", pipeline="ZImagePipeline", room_bytes=0, budget=2**40) as loaded:
            shell = loaded.shell()
            made.append(shell(**call, generator=torch.Generator().manual_seed(1), output_type="np").images)
            shell.maybe_free_model_hooks()
        residency.close()
    assert np.array_equal(made[0], made[1])


@pytest.mark.parametrize(
    ("settings", "model", "error", "says"),
    [
        ({"MEDIAMILL_MODEL_ZIMAGE": "/nowhere/at/all"}, "zimage", ModelUnavailable, "is no folder"),
        ({"DTYPE": "int8"}, "zimage", ModelUnavailable, "DTYPE 'int8'.*float16, bfloat16, float32"),
        ({"DEVICE": "nonsense"}, "zimage", ModelUnavailable, "DEVICE 'nonsense'.*accepted here: cpu"),
        ({"DEVICE": "meta"}, "zimage", ModelUnavailable, "DEVICE 'meta'.*accepted here: cpu"),
        ({"DEVICE": "cuda:99"}, "zimage", ModelUnavailable, "DEVICE 'cuda:99'.*accepted here: cpu"),
        ({}, "ltx2", NotImplementedYet, "do not exist here yet"),
        ({}, "longcat", NotImplementedYet, "does not run on diffusers"),
    ],
)
def test_what_cannot_run_says_why(
    tmp_path: Path,
    tiny_settings: Mapping[str, str],
    settings: Mapping[str, str],
    model: str,
    error: type[MediamillError],
    says: str,
) -> None:
    own = engine_module.create({**tiny_settings, **settings})
    work = Work("j", 1, model, work_of("zimage", **SMALL_IMAGE).params)
    with pytest.raises(error, match=says):
        run(own, tmp_path, work)
    own.close()
    assert own.held() == []


def test_half_precision_is_a_setting(tmp_path: Path, tiny_settings: Mapping[str, str]) -> None:
    own = engine_module.create({**tiny_settings, "DTYPE": "BF16", "DEVICE": "CPU"})
    output = run(own, tmp_path, work_of("zimage", **SMALL_IMAGE)).output
    assert (output["dtype"], output["device"]) == ("bfloat16", "cpu")
    own.close()


@pytest.mark.parametrize(("model", "other"), [("zimage", "LTX_VIDEO"), ("ltx-video", "ZIMAGE")])
def test_weights_of_another_family_are_named(
    tmp_path: Path, tiny_settings: Mapping[str, str], model: str, other: str
) -> None:
    setting = locate.setting_name(model)
    own = engine_module.create({**tiny_settings, setting: tiny_settings[f"MEDIAMILL_MODEL_{other}"]})
    asked = SMALL_IMAGE if model == "zimage" else SMALL_CLIP
    with pytest.raises(ModelUnavailable, match=f"{model}.*Pipeline; accepted: .*Pipeline.*{setting}"):
        run(own, tmp_path, work_of(model, **asked))
    assert own.held() == []
    own.close()


def test_a_picture_that_cannot_be_taken_is_named_by_its_field(
    diffusers_engine: DiffusersEngine, tmp_path: Path
) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    for model, asked in (("zimage", SMALL_IMAGE), ("ltx-video", SMALL_CLIP)):
        with pytest.raises(MediamillError, match=r"^image_url: .*50000000 pixels"):
            run(
                diffusers_engine, tmp_path / model, work_of(model, **asked, inputs={"image_url": tmp_path / "huge.png"})
            )
