"""The parts of the diffusers engine that need no weights."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.video_processor import VideoProcessor

from mediamill.catalog import Entry, Request, Weights, _entries, load, register
from mediamill.engines.diffusers import create, decode, locate, memory, plain, preview
from mediamill.engines.diffusers.locate import Located
from mediamill.engines.diffusers.memory import Need, Placement
from mediamill.engines.diffusers.pace import Pace
from mediamill.engines.diffusers.relay import relay
from mediamill.engines.diffusers.residency import Key, Residency
from mediamill.errors import EngineFailed, ModelUnavailable, OutOfMemory
from mediamill.media.probe import probe
from mediamill.model import Work
from tests.fixtures_tiny import run, work_of
from tests.hub import hub
from tests.service import environment
from tests.tiny_pipelines import as_hub_cache


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [(0, 1)]), (12, [(0, 12)]), (13, [(0, 12), (9, 13)]), (21, [(0, 12), (9, 21)])]
)
def test_stretches_cover_everything_once_with_an_overlap(count: int, expected: list[tuple[int, int]]) -> None:
    assert decode.stretches(count, tile=12, overlap=3) == expected


def ramp(latents: torch.Tensor) -> torch.Tensor:
    """A decoder that interpolates: 8 frames between two latents, so that joined stretches are exact."""
    frames = (latents.shape[2] - 1) * 8 + 1
    return torch.nn.functional.interpolate(
        latents, size=(frames, *latents.shape[3:]), mode="trilinear", align_corners=True
    )


@pytest.mark.parametrize("count", [1, 2, 4, 5, 7, 8, 11])
def test_joined_stretches_are_the_whole_clip(count: int) -> None:
    latents = torch.randn(1, 3, count, 2, 2, generator=torch.Generator().manual_seed(count))
    parts = list(decode.in_stretches(ramp, latents, tile=4, overlap=2, frames_per_latent=8))
    assert torch.allclose(torch.cat(parts, dim=2), ramp(latents), atol=1e-5)
    assert len(parts) == len(decode.stretches(count, tile=4, overlap=2))


def test_frames_leave_while_later_stretches_are_still_to_be_decoded() -> None:
    decoded: list[int] = []

    def counted(latents: torch.Tensor) -> torch.Tensor:
        decoded.append(latents.shape[2])
        return ramp(latents)

    parts = decode.in_stretches(counted, torch.zeros(1, 3, 10, 2, 2), tile=4, overlap=2, frames_per_latent=8)
    frames = decode.to_frames(parts, count=73, width_px=2, height_px=2)
    first = [next(frames) for _ in range(16)]
    assert len(first) == 16
    assert decoded == [4]
    assert len(list(frames)) == 57
    assert decoded == [4, 4, 4, 4]


def test_frames_beyond_those_asked_for_are_dropped_undecoded() -> None:
    calls: list[int] = []

    def counted(latents: torch.Tensor) -> torch.Tensor:
        calls.append(latents.shape[2])
        return ramp(latents)

    parts = decode.in_stretches(counted, torch.zeros(1, 3, 10, 2, 2), tile=4, overlap=2, frames_per_latent=8)
    assert len(list(decode.to_frames(parts, count=10, width_px=2, height_px=2))) == 10
    assert calls == [4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_frames_are_rounded_like_diffusers_rounds_and_leave_the_decoded_part_as_it_is(dtype: torch.dtype) -> None:
    part = torch.randn(1, 3, 3, 4, 6, generator=torch.Generator().manual_seed(3)).to(dtype)
    before = part.clone()
    frames = list(decode.to_frames(iter([part]), count=3, width_px=4, height_px=2))
    video = VideoProcessor().postprocess_video(part.float(), output_type="np")[0]
    expected = (video * 255).round().astype(np.uint8)[:, 1:3, 1:5]
    assert np.array_equal(np.stack(frames), expected)
    assert torch.equal(part, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_part_that_is_not_finite_ends_the_frames(bad: float) -> None:
    good, poisoned = torch.zeros(1, 3, 2, 2, 2), torch.zeros(1, 3, 2, 2, 2)
    poisoned[0, 1, 1, 0, 1] = bad  # one value among good ones
    frames = decode.to_frames(iter([good, poisoned]), count=4, width_px=2, height_px=2)
    assert [next(frames).shape, next(frames).shape] == [(2, 2, 3)] * 2
    with pytest.raises(EngineFailed):
        next(frames)


def test_running_ahead_is_bounded_ordered_and_ends_with_its_error() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for i in range(5):
            made.append(i)
            yield i
        raise EngineFailed("at the end")

    ahead = decode.Ahead(source(), depth=2)
    deadline = time.monotonic() + 5
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert len(made) <= 4  # two in the queue, one in hand
    taken = []
    with pytest.raises(EngineFailed, match="at the end"):
        taken.extend(iter(ahead))
    ahead.close()
    assert made == [0, 1, 2, 3, 4]


def test_closing_what_runs_ahead_stops_its_thread() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 1

    ahead = decode.Ahead(endless(), depth=1)
    assert next(ahead) == 1
    ahead.close()
    assert not ahead.running


def test_a_relay_passes_items_on_while_the_work_goes_on() -> None:
    proceed = threading.Event()

    def work(say: object) -> None:
        say(1)  # type: ignore[operator]
        assert proceed.wait(5)
        say(2)  # type: ignore[operator]
        raise EngineFailed("then this")

    said = relay(work, stop=proceed.set)
    assert next(said) == 1
    proceed.set()
    assert next(said) == 2
    with pytest.raises(EngineFailed, match="then this"):
        next(said)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize("first_s", [0.5, 20.0], ids=["even", "slow first step"])
def test_the_time_left_is_what_it_turns_out_to_be(first_s: float) -> None:
    clock = Clock()
    pace = Pace(10, tail_s=3.0, clock=clock)
    told = []
    for step in range(10):
        clock.now_s += first_s if step == 0 else 0.5
        told.append((clock.now_s, pace.step()))
    end_s = clock.now_s + 3.0
    assert told[0][1].eta_s is None
    for at_s, progress in told[1:]:
        assert progress.eta_s == pytest.approx(end_s - at_s, abs=0.01)
    clock.now_s += 1.0
    assert pace.frame(1, 10).eta_s == pytest.approx(2.0)


def test_without_an_earlier_run_the_rest_of_the_frames_is_told_only_from_the_middle_on() -> None:
    clock = Clock()
    pace = Pace(1, tail_s=None, clock=clock)
    pace.step()
    clock.now_s += 4.0
    assert pace.frame(1, 10).eta_s is None
    assert pace.frame(8, 10).eta_s == pytest.approx(1.0)


def test_the_latents_a_step_heads_for_are_found_from_two_of_them() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    finished, noise = torch.full((1, 4, 2, 2), 0.7), torch.randn(1, 4, 2, 2)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(6)
    latents = noise
    for timestep in scheduler.timesteps[:3]:
        before, latents = latents, scheduler.step(noise - finished, timestep, latents, return_dict=False)[0]
        assert torch.allclose(preview.predicted(scheduler, before, latents), finished, atol=1e-5)


def test_a_fitted_projection_shows_the_colours_of_what_was_encoded(tmp_path: Path) -> None:
    class Averaging:
        """An autoencoder whose latents are a mixture of the colours of 8x8 pixels."""

        device, dtype = torch.device("cpu"), torch.float32
        mixing = torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0], [0.3, 0.3, 2.0], [1.0, -1.0, 0.0]])

    class Family:
        @staticmethod
        def encoded(vae: Averaging, pictures: torch.Tensor) -> torch.Tensor:
            small = torch.nn.functional.avg_pool2d(pictures, 8)
            return torch.einsum("dc,nchw->ndhw", vae.mixing, small) + 0.1

    projection = preview.fit(Family(), Averaging())  # type: ignore[arg-type]
    wanted = torch.tensor([0.8, 0.2, 0.4])
    latents = Family.encoded(Averaging(), (wanted * 2 - 1).view(1, 3, 1, 1).expand(1, 3, 64, 64))[0][:, None]
    preview.write(latents, projection, tmp_path / "p.png")
    from PIL import Image

    with Image.open(tmp_path / "p.png") as image:
        assert image.size == (256, 256)
        shown = np.asarray(image).mean(axis=(0, 1)) / 255
    assert np.abs(shown - wanted.numpy()).max() < 0.02


@pytest.mark.parametrize(
    ("needed", "budget", "device", "low_vram", "expected"),
    [
        (Need(10, 6, 2), 12, "cuda", False, Placement("cuda", "bfloat16")),
        (Need(10, 6, 2), 11, "cuda", False, Placement("cuda", "bfloat16", offload=True)),
        (Need(10, 6, 2), 99, "cuda", True, Placement("cuda", "bfloat16", offload=True)),
        (Need(10, 6, 2), 7, "cuda", False, "Lower width"),
        (Need(10, 6, 2), 11, "cpu", False, "Lower width"),
        (Need(10, 6, 2), 6, "cuda", False, "weights alone take"),
        (Need(10, 6, 2), 10, "cpu", False, "weights alone take"),
    ],
)
def test_where_weights_go_follows_from_what_fits(
    needed: Need, budget: int, device: str, low_vram: bool, expected: Placement | str
) -> None:
    def choose() -> Placement:
        wanted = Placement(device, "bfloat16")
        return memory.choose(wanted, needed, budget, name="m", lower="Lower width.", low_vram=low_vram)

    if isinstance(expected, str):
        with pytest.raises(OutOfMemory, match=expected):
            choose()
    else:
        assert choose() == expected


def test_the_least_recently_used_weights_go_when_room_is_short(tiny_zimage: Path, tiny_ltx_video: Path) -> None:
    clock = Clock()
    residency = Residency(ttl_s=1000, clock=clock)
    cpu = Placement("cpu", "float32")
    models = {
        "zimage": (Key(tiny_zimage, cpu), "ZImagePipeline"),
        "ltx-video": (Key(tiny_ltx_video, cpu), "LTXPipeline"),
        "other": (Key(tiny_zimage, Placement("cpu", "bfloat16")), "ZImagePipeline"),
    }

    def use(name: str, budget: int) -> None:
        clock.now_s += 1
        key, pipeline = models[name]
        with residency.using(key, name=name, pipeline=pipeline, room_bytes=1_000_000, budget=budget):
            assert name in residency.names()

    for name in ("zimage", "ltx-video", "zimage"):
        use(name, 2**40)
    assert residency.names() == ["ltx-video", "zimage"]
    use("other", 4_000_000)
    assert residency.names() == ["other", "zimage"]
    use("other", 2_000_000)  # loaded already, and its work needs the room of the other
    assert residency.names() == ["other"]
    use("zimage", 2**40)
    use("other", 2**40)
    clock.now_s += 500
    residency.drop_unused(older_than_s=501)
    assert residency.names() == ["other"]
    residency.drop_unused()
    assert residency.names() == []
    residency.close()


def test_weights_in_use_are_never_dropped(tiny_zimage: Path) -> None:
    residency = Residency(ttl_s=1000)
    key = Key(tiny_zimage, Placement("cpu", "float32"))
    with residency.using(key, name="zimage", pipeline="ZImagePipeline", room_bytes=0, budget=0):
        residency.drop_unused()
        assert residency.names() == ["zimage"]
    residency.close()


def test_unused_weights_go_after_their_time(tiny_zimage: Path) -> None:
    residency = Residency(ttl_s=0.2)
    key = Key(tiny_zimage, Placement("cpu", "float32"))
    for _ in range(3):
        with residency.using(key, name="zimage", pipeline="ZImagePipeline", room_bytes=0, budget=2**40):
            time.sleep(0.07)  # the timer of the first use comes too early for the last
    deadline = time.monotonic() + 10
    while residency.names() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert residency.names() == []
    residency.close()


# where weights lie


def test_a_hub_cache_is_searched_like_the_hub_does(tmp_path: Path, tiny_zimage: Path) -> None:
    cache = tmp_path / "hub"
    as_hub_cache(tiny_zimage, cache, "org/model", revision="b" * 40)
    main = as_hub_cache(tiny_zimage, cache, "org/model", revision="a" * 40)
    for settings in ({"HF_HUB_CACHE": str(cache)}, {"TRANSFORMERS_CACHE": str(cache)}):
        assert locate.find_folder("org/model", settings) == main
    home = tmp_path / "home"
    as_hub_cache(tiny_zimage, home / "hub", "org/model")
    assert locate.find_folder("org/model", {"HF_HOME": str(home)}) is not None
    (cache / "models--org--model" / "refs" / "main").unlink()
    assert locate.find_folder("org/model", {"HF_HUB_CACHE": str(cache)}) is not None
    assert locate.find_folder("org/other", {"HF_HUB_CACHE": str(cache)}) is None
    found = locate.located("org/model", {"HF_HUB_CACHE": str(cache)}, name="zimage")
    assert found.pipeline == "ZImagePipeline"


def test_counted_weights_are_those_of_the_loaded_modules(tiny_zimage: Path) -> None:
    from diffusers import ZImagePipeline

    pipe = ZImagePipeline.from_pretrained(tiny_zimage)
    counted = locate.located(str(tiny_zimage), {}, name="zimage").component_params
    for name in ("transformer", "vae", "text_encoder"):
        assert counted[name] == sum(p.numel() for p in getattr(pipe, name).parameters())
    assert counted["scheduler"] == counted["tokenizer"] == 0


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda f: (f / "model_index.json").unlink(), "model_index.json"),
        (lambda f: next((f / "transformer").glob("*.safetensors")).unlink(), r"transformer/\*.safetensors"),
        (lambda f: (f / "vae" / "config.json").unlink(), "vae/config.json"),
        (lambda f: _cut(next((f / "vae").glob("*.safetensors"))), "vae/diffusion_pytorch_model.safetensors"),
        (lambda f: _rewrite(next((f / "vae").glob("*.safetensors")), b"[1]     "), "vae/diffusion_pytorch_model"),
        (lambda f: _rewrite(next((f / "vae").glob("*.safetensors")), b'{"a": 1}'), "vae/diffusion_pytorch_model"),
        (lambda f: _shard(f / "transformer"), "transformer/part-2.safetensors"),
        (lambda f: _number(f / "transformer"), "transformer/model-00002-of-00002.safetensors"),
        (lambda f: _keep(f / "tokenizer", "tokenizer_config.json"), "tokenizer/"),
        (lambda f: _dangle(next((f / "text_encoder").glob("*.safetensors"))), "text_encoder/model.safetensors"),
    ],
    ids=[
        "no index",
        "no weights",
        "no config",
        "cut off",
        "no header",
        "another header",
        "a shard missing",
        "a shard missing, and the list of shards",
        "only a part of the tokenizer",
        "a dangling link",
    ],
)
def test_a_partial_download_is_noticed(tmp_path: Path, tiny_zimage: Path, damage: object, named: str) -> None:
    snapshot = as_hub_cache(tiny_zimage, tmp_path, "org/model")
    damage(snapshot)  # type: ignore[operator]
    with pytest.raises(ModelUnavailable, match=f"incomplete: {named}.*models pull zimage"):
        locate.located("org/model", {"HF_HUB_CACHE": str(tmp_path)}, name="zimage")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def _rewrite(path: Path, header: bytes) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def _number(home: Path) -> None:
    next(home.glob("*.safetensors")).rename(home / "model-00001-of-00002.safetensors")


def _keep(home: Path, name: str) -> None:
    for path in home.iterdir():
        if path.name != name:
            path.unlink()


def _dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _shard(home: Path) -> None:
    next(home.glob("*.safetensors")).rename(home / "part-1.safetensors")
    index = '{"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}'
    (home / "diffusion_pytorch_model.safetensors.index.json").write_text(index)


class AnyRequest(Request):
    """All that a further model has to say."""

    prompt: str
    width: int = 64
    height: int = 64
    steps: int = 2
    guidance_scale: float = 0.0
    seed: int | None = None
    sampler: str = "of no use to the pipeline"


def test_a_further_model_is_one_catalog_entry(tiny_zimage: Path, tmp_path: Path) -> None:
    entry = Entry(
        name="any-model",
        summary="Any pipeline.",
        request=AnyRequest,
        engine="diffusers",
        output_kind="image",
        pool="gpu",
        weights=Weights(repo="org/any"),
    )
    found = Located(tiny_zimage, "here", "ZImagePipeline", {})
    plan = plain.plan(Work("j", 1, entry.name, AnyRequest(prompt="a fox", width=70).model_dump()), entry.weights, found)
    assert dict(plan.call) == {
        "prompt": "a fox",
        "width": 80,
        "height": 64,
        "num_inference_steps": 2,
        "guidance_scale": 0.0,
    }
    register(entry)
    load.cache_clear()
    try:
        engine = create({"MEDIAMILL_MODEL_ANY_MODEL": str(tiny_zimage), "DEVICE": "cpu"})
        ran = run(engine, tmp_path, work_of("any-model", prompt="a fox", width=70, seed=5))
        engine.close()
    finally:
        _entries.pop(entry.name)
        load.cache_clear()
    assert probe(ran.file.path).width_px == 70
    assert ran.output["seed"] == 5


def test_a_pull_tells_how_much_of_how_much_has_come(tmp_path: Path, tiny_zimage: Path) -> None:
    """In a process of its own: the hub's address is read when its library is imported."""
    script = """
import sys
from mediamill.engines.diffusers import pull
told = []
print(pull.pull("org/model", {"HF_HUB_CACHE": sys.argv[1]}, on_bytes=lambda done, total: told.append((done, total))))
print(told[-1][0], {total for _, total in told}, [done for done, _ in told] == sorted(done for done, _ in told))
"""
    needed = [p for p in tiny_zimage.rglob("*") if p.is_file() and p.suffix != ".md"]
    with hub(tiny_zimage, "org/model", token="hf_secret") as served:
        for token in ("hf_wrong", "hf_secret"):
            extra = {"HF_ENDPOINT": served.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": token}
            done = subprocess.run(
                [sys.executable, "-c", script, str(tmp_path)],
                env=environment(extra),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            if token == "hf_wrong":
                assert "set HF_TOKEN" in done.stderr
                assert token not in done.stderr
    size = sum(p.stat().st_size for p in needed)
    folder, told = done.stdout.splitlines()
    assert folder.startswith(str(tmp_path))
    assert told == f"{size} {{{size}}} True"
