"""A forked worker is like a fresh python: the same scripts, cold and warm, must end and write the same."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from spotrun.launcher.workers import Workers
from tests.worker_groups import Outcome, quiet_environment, run

LIKENESS = Path(__file__).parent.parent / "scripts" / "likeness.py"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workers, Workers]]:
    """Cold and warm."""
    with pytest.MonkeyPatch.context() as patch:
        quiet_environment()
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        cold, warm = Workers(warm=False), Workers(warm=True)
        yield cold, warm
        warm.close()
        cold.close()


def both(
    pair: tuple[Workers, Workers], command: tuple[str, ...], logs: Path, *, count: int = 1, **env: str
) -> tuple[list[Outcome], list[Outcome]]:
    cold, warm = pair
    fresh = run(cold, command, logs / "cold", count=count, env=env)
    forked = run(warm, command, logs / "warm", count=count, env=env)
    assert (cold.forked, warm.forked) == (0, count)
    return fresh, forked


def without_addresses(outcome: Outcome) -> Outcome:
    out, err = (re.sub(r"\b0x[0-9a-f]{6,}\b", "0x?", text) for text in (outcome.out, outcome.err))
    return Outcome(outcome.code, out, err)


@pytest.mark.parametrize(
    ("path", "arguments"),
    [("absolute", ("torch", "a b", "ü", "")), ("relative", ("",)), ("dotted", ()), ("link", ("-m", "--x=y"))],
)
def test_a_forked_worker_sees_itself_as_a_fresh_one_does(
    pair: tuple[Workers, Workers],
    tmp_path: Path,
    path: str,
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = str(LIKENESS)
    if path == "relative":
        monkeypatch.chdir(LIKENESS.parent.parent)
        script = "scripts/likeness.py"
    elif path == "dotted":
        monkeypatch.chdir(LIKENESS.parent)
        script = "./../scripts/likeness.py"
    elif path == "link":
        monkeypatch.chdir(tmp_path)
        Path("link.py").symlink_to(LIKENESS)
        script = "./link.py"
    (fresh,), (forked,) = both(pair, (script, *arguments), tmp_path, TORCHELASTIC_ERROR_FILE="x", SPOTRUN_X="\udcff")
    assert (fresh.code, fresh.err) == (forked.code, forked.err) == (0, "")
    seen, of_fork = json.loads(fresh.out), json.loads(forked.out)
    assert len(seen) > 30
    for each in (seen, of_fork):  # the one thing that is another file for each start
        assert each["environment"].pop("TORCHELASTIC_ERROR_FILE").endswith("error.json")
        each["c environment"] = [line for line in each["c environment"] if "ERROR_FILE" not in line]
    assert {key: value for key, value in of_fork.items() if seen[key] != value} == {}
    assert list(seen["environment"]) == list(of_fork["environment"])


CASES = {
    "ends": "print('done')",
    "exception": "def f():\n    raise ValueError('no')\nf()",
    "chained": "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise KeyError('k') from error",
    "in context": "try:\n    1 / 0\nexcept ZeroDivisionError:\n    {}['k']",
    "group": "import sys\nif sys.version_info >= (3, 11):\n    raise ExceptionGroup('g', [ValueError(1), KeyError(2)])",
    "syntax error": "print('never')\nx = (1,\n",
    "bad indent": "if True:\nprint(1)",
    "null byte": "x = 1\0",
    "exit 3": "import sys\nsys.exit(3)",
    "exit text": "import sys\nsys.exit('a reason')",
    "exit none": "raise SystemExit",
    "exit in finally": "try:\n    raise ValueError\nfinally:\n    raise SystemExit(4)",
    "os._exit": "import os, atexit\natexit.register(print, 'never')\nos._exit(5)",
    "segfault": "import ctypes\nctypes.string_at(0)",
    "abort": "import os\nos.abort()",
    "sigterm": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)",
    "sigpipe": "import os, signal\nos.kill(os.getpid(), signal.SIGPIPE)\nprint('ignored')",
    "sigusr1": "import os, signal\nos.kill(os.getpid(), signal.SIGUSR1)",
    "keyboard interrupt": "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(60)",
    "atexit": "import atexit\natexit.register(print, 1)\natexit.register(print, 2)\nprint('main')\nraise KeyError",
    "atexit raises": "import atexit\ndef f():\n    raise ValueError('late')\natexit.register(f)",
    "own excepthook": "import sys\nsys.excepthook = lambda *a: print('hook', a[0], a[2].tb_lineno)\n1 / 0",
    "excepthook raises": "import sys\ndef hook(*a):\n    sys.exit(9)\nsys.excepthook = hook\n1 / 0",
    "thread goes on": "import threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()\nprint('main')",
    "thread raises": "import threading\nt = threading.Thread(target=lambda: 1 / 0, name='T')\nt.start()\nt.join()",
    "destructor": "class A:\n    def __del__(self):\n        print('gone')\na = A()",
    "deep recursion": "def f(n):\n    return n and 1 + f(n - 1)\nprint(f(900))",
    "future stays out": "def f(x: Undefined) -> None: ...",
    "future goes in": "from __future__ import annotations\ndef f(x: Undefined) -> None: ...\nprint(f.__annotations__)",
    "latin-1": "# -*- coding: latin-1 -*-\nprint(len('\u00e9'))",
    "no encoding": "print(ascii('\u00e9'))",
    "c output": "import ctypes\nprint('py')\nctypes.CDLL(None).puts(b'c')\nprint('py again')",
    "partial line": "import sys, os\nsys.stdout.write('no newline')\nos._exit(0)",
    "stderr order": "import sys\nfor i in range(3):\n    print(i, file=sys.stderr)\n    print(i)",
    "stdin": "import sys\nprint(sys.stdin.encoding, sys.stdin.fileno())",
    "warning": "import warnings\nwarnings.warn('careful')\nwarnings.warn('old', DeprecationWarning)",
    "logging": "import logging\nlogging.warning('w')\nlogging.getLogger('a').error('e')\n"
    "print(logging.getLogger().handlers)",
    "import fails": "import no_such_module",
    "neighbour": "import neighbour\nprint(neighbour.__name__, neighbour.VALUE)",
    "neighbour raises": "import neighbour\nneighbour.fail()",
    "pickle": "import pickle, sys\nclass A:\n    x = 1\n"
    "a = pickle.loads(pickle.dumps(A()))\nprint(type(a), type(a) is A, A.__module__)",
    "dataclass": "import dataclasses, typing\n@dataclasses.dataclass\nclass A:\n    x: 'B'\nclass B: ...\n"
    "print(typing.get_type_hints(A))",
    "import main": "import __main__\nvalue = 7\nprint(__main__.value, __main__.__spec__)",
    "open file": "print(open(__file__).read())",
    "inspect": "import inspect\ndef f():\n    return 1\nprint(inspect.getsource(f), inspect.getfile(f))",
    "spawn": "import multiprocessing as mp\nVALUE = 3\ndef f(x):\n    return x * VALUE, __name__\n"
    "if __name__ == '__main__':\n    with mp.get_context('spawn').Pool(1) as p:\n        print(p.map(f, [1, 2]))",
    "forkserver": "import multiprocessing as mp\nVALUE = 3\ndef f(x):\n    return x * VALUE\n"
    "if __name__ == '__main__':\n    with mp.get_context('forkserver').Pool(1) as p:\n        print(p.map(f, [1, 2]))",
    "fork": "import multiprocessing as mp\nVALUE = 3\ndef f(x):\n    return x * VALUE, __name__\n"
    "with mp.get_context('fork').Pool(2) as p:\n    print(p.map(f, [1, 2]))",
    "spawn raises": "import multiprocessing as mp\ndef f():\n    1 / 0\nif __name__ == '__main__':\n"
    "    p = mp.get_context('spawn').Process(target=f, name='P')\n    p.start()\n    p.join()\n    print(p.exitcode)",
    "executor": "from concurrent.futures import ProcessPoolExecutor\ndef f(x):\n    return x + 1\n"
    "if __name__ == '__main__':\n    with ProcessPoolExecutor(1) as e:\n        print(list(e.map(f, [1, 2])))",
    "subprocess": "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', 'import os; "
    'print(os.environ["RANK"])\'], capture_output=True).stdout)',
    "asyncio": "import asyncio\nasync def f():\n    p = await asyncio.create_subprocess_exec('true')\n"
    "    return await p.wait()\nprint(asyncio.run(f()))",
    "recorded": "from torch.distributed.elastic.multiprocessing.errors import record\n@record\ndef main():\n    1 / 0\n"
    "if __name__ == '__main__':\n    try:\n        main()\n    finally:\n        import json, os\n"
    "        data = json.load(open(os.environ['TORCHELASTIC_ERROR_FILE']))['message']\n"
    "        print(data['message'], data['extraInfo']['py_callstack'])",
    "loaders": "import torch\nfrom torch.utils.data import DataLoader, Dataset\nclass D(Dataset):\n"
    "    def __len__(self):\n        return 6\n    def __getitem__(self, i):\n        return torch.ones(2) * i\n"
    "if __name__ == '__main__':\n    for context in ('fork', 'spawn'):\n"
    "        batches = DataLoader(D(), 2, num_workers=2, multiprocessing_context=context)\n"
    "        print([b.sum().item() for b in batches])",
    "two threads": "import torch\ntorch.set_num_threads(2)\ntorch.manual_seed(0)\n"
    "x = torch.randn(400, 400, requires_grad=True)\n(x @ x).relu().sum().backward()\n"
    "print(torch.get_num_threads(), round(x.grad.norm().item(), 2))",
    "numpy": "import numpy\nx = numpy.ones((300, 300))\nprint((x @ x).sum(), numpy.geterr())",
    "compile": "import torch\nprint(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2)))",
    "torch error": "import torch\ntorch.ones(2) @ torch.ones(3)",
}


@pytest.mark.parametrize("case", CASES)
def test_a_script_ends_and_writes_as_in_a_fresh_python(
    pair: tuple[Workers, Workers], tmp_path: Path, case: str
) -> None:
    encoding = "latin-1" if case in ("latin-1", "no encoding") else "utf-8"
    (tmp_path / "script.py").write_text(CASES[case] + "\n", encoding=encoding)
    (tmp_path / "neighbour.py").write_text("VALUE = 5\ndef fail():\n    raise LookupError('from a neighbour')\n")
    fresh, forked = both(pair, (str(tmp_path / "script.py"), "argument"), tmp_path)
    assert [without_addresses(each) for each in forked] == [without_addresses(each) for each in fresh]


@pytest.mark.parametrize("module", ["package", "package.part", "single", "raising", "package.none", "none"])
def test_a_module_runs_as_in_a_fresh_python(
    pair: tuple[Workers, Workers], tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    package.mkdir()
    shown = "import sys\nprint(__name__, __file__, __package__, __spec__.name, sys.argv, sys.path[0], sys.orig_argv)\n"
    (package / "__init__.py").write_text("print('package', __name__)\n")
    (package / "__main__.py").write_text(shown + "from . import part\n")
    (package / "part.py").write_text(shown)
    (tmp_path / "single.py").write_text(shown)
    (tmp_path / "raising.py").write_text("def f():\n    raise ValueError('from a module')\nf()\n")
    monkeypatch.chdir(tmp_path)
    fresh, forked = both(pair, ("-m", module, "argument"), tmp_path)
    assert forked == fresh


DDP = textwrap.dedent("""\
    import os, sys
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    torch.set_num_threads(2)
    dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(os.environ["RANK"]), world_size=2)
    torch.manual_seed(1)
    model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Linear(256, 1)))
    for _ in range(3):
        model(torch.full((64, 256), float(dist.get_rank()))).sum().backward()
    print(round(sum(p.grad.norm().item() for p in model.parameters()), 3), flush=True)
    dist.destroy_process_group()
    os._exit(0)
""")


def test_ddp_with_two_threads_gives_the_same_gradients(pair: tuple[Workers, Workers], tmp_path: Path) -> None:
    # The script leaves by os._exit: torch keeps the threads of the last DDP group until the process exits, where static
    # destructors race with them. Rarely, and in a cold start too, that ends in std::terminate.
    (tmp_path / "script.py").write_text(DDP)
    cold, warm = pair
    fresh = run(cold, (str(tmp_path / "script.py"), str(tmp_path / "store_cold")), tmp_path / "cold", count=2)
    forked = run(warm, (str(tmp_path / "script.py"), str(tmp_path / "store_warm")), tmp_path / "warm", count=2)
    assert warm.forked == 2
    assert [each.code for each in fresh + forked] == [0] * 4, [each.err for each in fresh + forked]
    assert forked == fresh


def test_each_forked_worker_draws_seeds_of_its_own(pair: tuple[Workers, Workers], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import random, numpy, torch, multiprocessing as mp, uuid, tempfile\n"
        "print(random.random(), numpy.random.rand(), torch.initial_seed(), torch.rand(1).item(),\n"
        "      mp.current_process().authkey.hex(), uuid.uuid4(), next(tempfile._get_candidate_names()))\n"
    )
    lines = []
    for _ in range(2):
        lines += [each.out.split() for each in run(pair[1], (str(tmp_path / "script.py"),), tmp_path / "logs", count=2)]
    assert pair[1].forked == 2
    for drawn in zip(*lines, strict=True):
        assert len(set(drawn)) == 4, drawn


def test_a_missing_script_ends_as_in_a_fresh_python(pair: tuple[Workers, Workers], tmp_path: Path) -> None:
    cold, warm = pair
    fresh = run(cold, (str(tmp_path / "none.py"),), tmp_path / "cold")
    assert run(warm, (str(tmp_path / "none.py"),), tmp_path / "warm") == fresh
    assert fresh[0].code == 2 and "can't open file" in fresh[0].err


def test_a_script_that_replaces_what_was_imported_beforehand_is_started_cold(
    pair: tuple[Workers, Workers], tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text("import statistics\nprint(statistics.__file__)\n")
    assert "statistics" not in sys.builtin_module_names
    (tmp_path / "json.py").write_text("")
    outcome = run(pair[1], (str(tmp_path / "script.py"),), tmp_path / "logs")[0]
    assert (outcome.code, pair[1].forked) == (0, 0)
    (tmp_path / "json.py").unlink()
    (tmp_path / "random_data.csv").write_text("")
    run(pair[1], (str(tmp_path / "script.py"),), tmp_path / "logs")
    assert pair[1].forked == 1


def test_another_environment_than_that_of_the_imports_is_started_cold(
    pair: tuple[Workers, Workers], tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text("import torch\nprint(torch.get_num_threads())\n")
    outcome = run(pair[1], (str(tmp_path / "script.py"),), tmp_path / "logs", env={"OMP_NUM_THREADS": "1"})[0]
    assert (outcome.code, outcome.out.strip(), pair[1].forked) == (0, "1", 0)
