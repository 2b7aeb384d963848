"""The processes that decode images: how their batches travel, what ends them, what is said about one that is stuck."""

import ctypes
import math
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import fields

import pytest
import torch

from normfree import RunFailed
from normfree.data import EvalTransform, Loader, Mixing, TrainTransform, UnreadableImage, processes
from normfree.data import loader as loaders
from normfree.data.detection import ObjectList, ObjectTransform
from normfree.data.objects import open_objects
from normfree.data.processes import Places, shortage
from normfree.data.sources import synthetic

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12
PLAIN = dict(mean=(0.5,), std=(0.25,))
VIEW = EvalTransform(8, 0, **PLAIN)


class Numbered:
    """Grey images of their own number; ``does`` what some of them ask for, in the process that decodes."""

    def __init__(self, length=24, does=None):
        self.length, self.does = length, does or {}

    def __len__(self):
        return self.length

    def image(self, index):
        if index in self.does:
            self.does[index]()
        return torch.full((1, 8, 8), index, dtype=torch.uint8)

    def label(self, index):
        return index

    def target(self, index):
        return torch.tensor([index / 3, index / 7])

    def name(self, index):
        return f"photos/{index}.png"


def unreadable():
    raise UnreadableImage("photos/5.png: broken")


def tensors(batch):
    """Everything in a batch by name, in order."""
    found = {}
    for name in (field.name for field in fields(batch)):
        value = getattr(batch, name)
        for place, one in enumerate(value if isinstance(value, ObjectList) else [value]):
            parts = vars(one) if isinstance(value, ObjectList) else {"": one}
            found |= {f"{name}.{place}.{part}": inner for part, inner in parts.items()}
    return found


def same(one, other):
    one, other = tensors(one), tensors(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == other[name].dtype
            assert torch.equal(value, other[name]), name
        else:
            assert value == other[name], name


def loader(kind, workers):
    options = dict(shuffle=True, seed=3, workers=workers)
    if kind == "objects":
        transform = ObjectTransform(32, 32, (0.5,) * 3, (0.5,) * 3, short_side=32, train=True)
        return Loader(open_objects("scenes:12,32").train, transform, 4, shape=(3, 32, 32), pairs=True, **options)
    split = Numbered(does={5: unreadable})
    mixing = Mixing(0.2, 0.0) if kind == "mixed" else None
    transform = TrainTransform(8, "none", False, **PLAIN) if mixing else VIEW
    return Loader(split, transform, 5, shape=(1, 8, 8), mixing=mixing, vectors=kind == "vectors", **options)


@pytest.mark.parametrize("kind", ["plain", "mixed", "vectors", "objects"])
def test_batches_through_pipes_are_the_same(monkeypatch, kind):
    """Where shared memory is too small; and that is said once."""
    monkeypatch.setattr(processes, "free_shared", lambda: 1000)
    said, piped = [], loader(kind, 2)
    piped.say = said.append
    for epoch in (0, 1):
        alone = loader(kind, 0)
        for one in (alone, piped):
            one.set_epoch(epoch)
        for ours, theirs in zip(piped, alone, strict=True):
            same(ours, theirs)
            ours.images.add_(1)  # it can be written to
    piped.close()
    assert said == ["shared memory (/dev/shm) is too small for some batches, which go through pipes instead"]


def test_shared_memory_is_used_where_there_is_enough(monkeypatch):
    monkeypatch.setattr(processes, "free_shared", lambda: math.inf)
    said, shared = [], loader("plain", 2)
    shared.say = said.append
    assert all(batch.images.is_shared() for batch in shared)
    shared.close()
    assert said == []


@pytest.mark.parametrize("kind", ["plain", "objects"])
def test_few_open_files(monkeypatch, kind):
    """A batch of images has few tensors, one of objects five for each image."""
    monkeypatch.setattr(processes, "most_files", lambda: 100)
    said, loaded = [], loader(kind, 2)
    loaded.say = said.append
    assert sum(map(len, loaded)) > 0
    loaded.close()
    told = ["too few files may be open at once (ulimit -n) for some batches, which go through pipes instead"]
    assert said == (told if kind == "objects" else [])


def test_as_many_files_as_are_allowed():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
        wanted = 2**16 if before[1] == resource.RLIM_INFINITY else min(2**16, before[1])
        assert processes.most_files() == wanted
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (wanted, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_what_batches_need():
    """Two that each process makes ahead, the one that the run has and the next one; and as much again."""
    assert shortage([6, 4], 2, free=120, files=24) == 0
    assert shortage([6, 4], 2, free=119, files=24) == processes.SPACE
    assert shortage([6, 4], 8, free=120, files=24) == processes.SPACE
    assert shortage([6, 4], 2, free=120, files=23) == processes.FILES
    assert shortage([10**12], 8, free=math.inf, files=math.inf) == 0
    assert shortage([], 8, free=0, files=0) == 0


def test_how_much_there_is(monkeypatch):
    free = os.statvfs("/dev/shm")
    total = free.f_blocks * free.f_frsize
    assert 0 <= processes.free_shared() <= total
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000000000000")  # processes of this machine share it
    assert processes.free_shared() <= total // 10**12
    monkeypatch.setattr(processes, "SHARED", "/nowhere")
    assert processes.free_shared() == 0
    monkeypatch.setattr(sys, "platform", "darwin")
    assert processes.free_shared() == math.inf


NEW_MOUNTS = 0x20000  # CLONE_NEWNS


def in_a_container(results):
    """Batches of 3 MB, 4 MB of shared memory."""
    mounted = "mount --make-rprivate / && mount -t tmpfs -o size=4m tmpfs /dev/shm"
    if ctypes.CDLL(None).unshare(NEW_MOUNTS) or subprocess.run(mounted, shell=True, capture_output=True).returncode:
        results.put(None)
        return
    said, transform = [], EvalTransform(256, 0, (0.5,) * 3, (0.5,) * 3)
    loader = Loader(synthetic("48").train, transform, 4, workers=2)
    loader.say = said.append
    results.put((processes.free_shared(), sum(map(len, loader)), said))
    loader.close()


def test_a_container_with_little_shared_memory():
    """For real, where this is allowed."""
    results = multiprocessing.SimpleQueue()
    process = multiprocessing.get_context("fork").Process(target=in_a_container, args=(results,))
    process.start()
    process.join()
    assert process.exitcode == 0
    found = results.get()
    if found is None:
        pytest.skip("this user may not mount")
    free, images, (said,) = found
    assert free <= 4 << 20
    assert images == 48
    assert said.startswith("shared memory (/dev/shm) is too small")


def forever():
    time.sleep(10**6)


def forever_and_deaf():
    """As a library that never lets Python go on: no thread of the process runs."""
    ctypes.PyDLL(None).sleep(10**6)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(loaders, "POLL", 0.1)
    monkeypatch.setattr(loaders, "GRACE", 0.5)


@pytest.mark.parametrize("does", [forever, forever_and_deaf])
@pytest.mark.usefixtures("impatient")
def test_a_process_that_is_stuck_is_named(does, monkeypatch):
    monkeypatch.setattr(loaders, "PATIENCE", 0.2)
    loader = Loader(Numbered(does={13: does}), VIEW, 4, workers=2, timeout=1)
    seen = []
    with pytest.raises(RunFailed) as caught:
        seen += loader
    (message,) = str(caught.value).splitlines()
    assert message.startswith("process ")
    assert message.endswith(
        ", which decodes images, is stuck at image photos/13.png for more than 1 s (data.timeout)"
    ), message
    assert multiprocessing.active_children() == []
    indices = [batch.indices.tolist() for batch in seen]
    assert indices == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]][: len(indices)]
    assert indices or does is forever_and_deaf  # whose batch may be waited for first


def deaf_after_a_batch():
    time.sleep(0.5)  # in which the batch before is announced; handing it over takes a thread of this process, too
    forever_and_deaf()


@pytest.mark.parametrize("requested", [False, True])
@pytest.mark.usefixtures("impatient")
def test_a_batch_that_cannot_be_handed_over_is_not_waited_for(requested, monkeypatch):
    monkeypatch.setattr(loaders, "PATIENCE", 0.2)
    loader = Loader(Numbered(does={4: deaf_after_a_batch}), VIEW, 4, workers=1, timeout=0 if requested else 1)
    loader.asked = lambda: requested
    iterator = loader._begun()
    time.sleep(1.5)
    if requested:
        batches = list(loader._watched(iterator))
        assert [len(batch) for batch in batches] == [0]
    else:
        with pytest.raises(RunFailed, match=r"is stuck at image photos/4.png for more than 1 s \(data.timeout\)$"):
            list(loader._watched(iterator))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("does", "told"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was ended by SIGKILL (memory may have run out; "),
        (lambda: os.kill(os.getpid(), signal.SIGUSR2), "was ended by SIGUSR2 at image photos/6.png"),
        (lambda: os._exit(3), "ended with exit code 3 at image photos/6.png"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_process_that_dies_is_named(does, told):
    loader = Loader(Numbered(does={6: does}), VIEW, 4, workers=2)
    with pytest.raises(RunFailed) as caught:
        list(loader)
    (message,) = str(caught.value).splitlines()
    assert f", which decodes images, {told}" in message
    assert message.endswith("at image photos/6.png")
    assert multiprocessing.active_children() == []


def test_no_limit_for_one_image():
    """0 and None: it may take as long as it takes."""
    for timeout in (0, None):
        loader = Loader(Numbered(8, does={2: lambda: time.sleep(0.3)}), VIEW, 4, workers=1, timeout=timeout)
        assert sum(map(len, loader)) == 8
        loader.close()


def test_slow_is_not_stuck():
    """What counts is the time at one image, not that of a batch."""
    places = Places(2)
    numbers = places._numbers
    numbers[0], numbers[3] = 111, 222  # the processes
    for second in range(100):
        numbers[1], numbers[2] = 1 + second, second  # one goes from image to image, the other has nothing to do
        assert places.stuck(10, lambda now=second: now) is None
    assert places.of(111) == 99
    assert places.of(222) is None
    for second in range(100, 109):
        assert places.stuck(10, lambda now=second: now) is None
    assert places.stuck(10, lambda: 109.0) == 111
    places.forget()  # a batch has come
    assert places.stuck(10, lambda: 110.0) is None
    numbers[1] = 0
    assert places.stuck(10, lambda: 111.0) is None
    assert places.stuck(10, lambda: 121.0) == 111  # all of them have done nothing: batches are lost


def send(number, process):
    """A signal from somebody else: a process's own parent may end it."""
    subprocess.run(["kill", f"-{int(number)}", str(process)], check=True)


def test_signals_to_all_processes_of_a_job_leave_those_that_decode():
    loader = Loader(Numbered(200), VIEW, 4, workers=2)
    batches = iter(loader)
    next(batches)
    workers = multiprocessing.active_children()
    for process in workers:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            send(number, process.pid)
    assert 1 + sum(1 for _ in batches) == 50
    assert all(process.is_alive() for process in workers)
    loader.close()
    assert [process.exitcode for process in workers] == [0, 0]


def test_a_signal_before_a_process_has_begun_does_not_end_it(monkeypatch):
    """torch's own handler is there first."""
    begin = loaders.begin

    def late(places, worker):
        send(signal.SIGTERM, os.getpid())
        begin(places, worker)

    monkeypatch.setattr(loaders, "begin", late)
    loader = Loader(Numbered(), VIEW, 4, workers=2)
    assert sum(map(len, loader)) == 24
    loader.close()


def test_a_process_that_dies_as_it_begins(monkeypatch):
    monkeypatch.setattr(loaders, "begin", lambda places, worker: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RunFailed, match=r"^(a process that decodes images has died: |process \d+, ).*(SIGKILL|Killed)"):
        list(Loader(Numbered(), VIEW, 4, workers=2))
    assert multiprocessing.active_children() == []


def test_the_parent_ends_a_process_at_any_time():
    loader = Loader(Numbered(does={0: forever}), VIEW, 4, workers=1)
    iterator = loader._begun()
    (process,) = multiprocessing.active_children()
    process.terminate()
    process.join(60)
    assert process.exitcode == 1
    del iterator
    loader.close()


@pytest.mark.usefixtures("impatient")
def test_a_request_to_stop_is_answered_while_a_batch_is_waited_for():
    loader = Loader(Numbered(does={9: forever}), VIEW, 4, shape=(1, 8, 8), workers=1, timeout=600)
    loader.asked = lambda: True
    sizes = []
    for batch in loader:
        sizes.append(len(batch))
        if not len(batch):
            break
    assert [size for size in sizes if size] == [4, 4]
    assert batch.images.shape == (0, 1, 8, 8)
    loader.close()
    assert multiprocessing.active_children() == []


def test_an_iteration_that_was_left_does_not_disturb_the_next():
    loader = Loader(Numbered(200), VIEW, 4, workers=2)
    for _ in range(2):
        assert next(iter(loader)).indices.tolist() == [0, 1, 2, 3]
    assert [batch.indices[0].item() for batch in loader] == list(range(0, 200, 4))
    loader.close()
    loader.close()


def test_processes_that_cannot_be_started(monkeypatch):
    def refused(*args):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refused)
    with pytest.raises(RunFailed, match=r"^2 processes for decoding images cannot be started \(Resource temporarily"):
        list(Loader(Numbered(), VIEW, 4, workers=2))


def with_a_stuck_process(told):
    loader = Loader(Numbered(does={0: forever}), VIEW, 4, workers=1)
    iterator = loader._begun()
    told.put(multiprocessing.active_children()[0].pid)
    forever()
    del iterator


def has_ended(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def begin_late(places, worker):
    """After the run that started this process is gone."""
    while os.getppid() == multiprocessing.parent_process().pid:
        time.sleep(0.01)
    processes.begin(places, worker)


@pytest.mark.parametrize("begin", [processes.begin, begin_late])
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_process_outlives_a_run_that_was_killed(begin, monkeypatch):
    """Not even one that is stuck at an image, or has not begun yet."""
    monkeypatch.setattr(processes, "PARENT_POLL", 0.1)
    monkeypatch.setattr(loaders, "begin", begin)
    told = multiprocessing.SimpleQueue()
    run = multiprocessing.get_context("fork").Process(target=with_a_stuck_process, args=(told,))
    run.start()
    process = told.get()
    assert not has_ended(process)
    run.kill()
    run.join()
    while not has_ended(process):
        time.sleep(0.05)
