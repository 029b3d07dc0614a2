"""The one table of flags of `spotrun run`: ours, and torchrun's as a reader needs them.

The help text comes from here, so that it needs no torch. Torch's own parser reads torchrun's flags; a test holds this
table against it. Ours are added to that parser from here.
"""

from __future__ import annotations

from dataclasses import dataclass

BACKEND = "etcd-v3"
ENV_PREFIX = "SPOTRUN_"


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. `value` names what it takes, and is empty for a switch; `default` is as a person would type it."""

    names: tuple[str, ...]
    value: str
    default: str
    help: str
    conf: str = ""  # ours: its key in --rdzv-conf, which is how it reaches the rendezvous
    env: bool = True  # whether the environment can set it, too
    choices: tuple[str, ...] = ()  # torchrun's: what its parser allows

    @property
    def dest(self) -> str:
        """Its name in the parsed namespace."""
        long = next(name for name in self.names if name.startswith("--"))
        return long[2:].replace("-", "_")

    @property
    def own_env(self) -> str:
        """The environment variable that sets one of ours."""
        return ENV_PREFIX + self.dest.upper()


@dataclass(frozen=True, slots=True)
class Group:
    title: str
    flags: tuple[Flag, ...]


def _own(name: str, value: str, default: str, help: str, conf: str = "", env: bool = True) -> Flag:
    return Flag((name,), value, default, help, conf, env)


def _torch(
    name: str, value: str, default: str, help: str, short: str = "", env: bool = True, choices: tuple[str, ...] = ()
) -> Flag:
    """One of torchrun's, which may be spelt with underscores as well."""
    spelt = dict.fromkeys((name, "--" + name[2:].replace("-", "_")))
    return Flag((*((short,) if short else ()), *spelt), value, default, help, "", env, choices)


OWN = (
    Group(
        "Nodes that come and go",
        (
            _own("--on-loss", "WHAT", "shrink", "After a node is lost: shrink (go on with fewer nodes at once), or "
                 "wait[:S] (for a replacement, at most S seconds).", "on_loss"),
            _own("--grow", "WHEN", "now", "When newcomers are taken into a running job: now[:S] (once none came for "
                 "S seconds, default 1), next-save (after the next checkpoint), or never.", "grow"),
            _own("--quarantine", "K/T", "", "Keep out a node that has failed K times within T seconds, until `spotrun "
                 "readmit`; such as 3/600.", "quarantine"),
            _own("--lease-ttl", "S", "4", "A node that is silent this long counts as lost; 1 to 300 seconds.",
                 "lease_ttl"),
            _own("--join-window", "S", "2", "The first start waits this long for one more node, up to the maximum.",
                 "join_window"),
            _own("--node-id", "ID", "host name and four digits", "This node's name in tables, events and drain.",
                 "node_id"),
            _own("--fresh", "", "", "Start the job anew if one with this --rdzv-id has ended.", "fresh", env=False),
            _own("--drain-exit-code", "N", "75 under Slurm, 143 under Kubernetes, else 0", "The exit code of a node "
                 "that left because it was told to."),
        ),
    ),
    Group(
        "etcd",
        (
            _own("--etcd-cacert", "FILE", "", "Talk TLS, and trust the authorities in FILE (PEM).", "cacert"),
            _own("--etcd-cert", "FILE", "", "This node's certificate (PEM), where etcd asks for one.", "cert"),
            _own("--etcd-key", "FILE", "", "The key of that certificate (PEM).", "key"),
            _own("--etcd-user", "NAME", "", "Log in as NAME; the password is in SPOTRUN_ETCD_PASSWORD, or in ...",
                 "user"),
            _own("--etcd-password-file", "FILE", "", "... the first line of FILE.", "password_file"),
        ),
    ),
    Group(
        "Workers and events",
        (
            _own("--warm", "MODE", "auto", "auto starts workers from a process that has imported torch, where that is "
                 "safe; off starts each anew."),
            _own("--preload", "MODULES", "", "What else that process imports, such as transformers,datasets; auto is "
                 "what the script imports at its top. Not what reads a rank when it is imported."),
            _own("--notice", "SOURCES", "auto", "Where news of this machine's end comes from: auto, none, or some of "
                 "aws, gcp, azure, alibaba, file:PATH, http[:PORT], health."),
            _own("--hang-timeout", "S", "20 steps, at least 60 s", "Workers on the training API that make no step for "
                 "so long are hung: their stacks are logged, and a restart is charged. Or off."),
            _own("--replicas", "N", "1", "On how many other nodes each snapshot in memory of sharded training (FSDP) "
                 "is kept, so that as many may be lost at once; 0: on none."),
            _own("--regions", "PATTERNS", "", "Where the job's machines and its bucket of checkpoints may be, such as "
                 "eu-*,uk-*; others are refused. The same on all nodes."),
            _own("--region", "NAME", "that of the cloud", "Where this machine is, for --regions."),
            _own("--wipe-on-exit", "", "", "Overwrite and remove what workers leave in temporary and cache "
                 "directories of this machine; what a lost agent left, at the next start."),
            _own("--audit", "DIR", "", "Where jobs on the training API record the samples of each step; `spotrun "
                 "audit` checks them."),
            _own("--log-format", "FORMAT", "text", "The agent's own log on stderr: text, or json, an object a line."),
            _own("--metrics", "[HOST:]PORT", "", "Serve metrics for Prometheus; on loopback without HOST."),
            _own("--price-per-node-hour", "PRICE", "", "What an hour of one node costs; the ledger then tells what "
                 "each incident did."),
            _own("--events", "FILE", "", "Append what happens to FILE, a line of JSON for each event."),
        ),
    ),
)  # fmt: skip

TORCH = (
    Group(
        "Size",
        (
            _torch("--nnodes", "N or MIN:MAX", "1:1", "The number of nodes, or its range."),
            _torch("--nproc-per-node", "N", "1", "Workers on this node: a number, auto, gpu, xpu or cpu."),
        ),
    ),
    Group(
        "Rendezvous",
        (
            _torch("--rdzv-endpoint", "HOST:PORT", "", "Where etcd is; several members are separated by commas."),
            _torch("--rdzv-id", "ID", "none", "The name of the job, the same on all of its nodes."),
            _torch("--rdzv-backend", "NAME", BACKEND, "c10d and static are torchrun's own, and are run by it."),
            _torch("--rdzv-conf", "K=V,...", "", "More settings of the backend."),
            _torch("--standalone", "", "", "One node by itself, with an etcd of its own; the default where neither an "
                   "endpoint nor a second node is named."),
            _torch("--local-addr", "ADDR", "", "This node's address for the others; found out if not given."),
        ),
    ),
    Group(
        "Workers",
        (
            _torch("--max-restarts", "N", "0", "How often the job may start again after a worker failed. Nodes that "
                   "come and go do not count."),
            _torch("--module", "", "", "The script is the name of a module, as for python -m.", "-m"),
            _torch("--no-python", "", "", "The script is a program of its own, not one for python."),
            _torch("--run-path", "", "", "Run the script by runpy; it must be an absolute path."),
            _torch("--role", "NAME", "default", "The role of the workers."),
            _torch("--start-method", "HOW", "spawn", "How multiprocessing starts workers that are functions.",
                   choices=("spawn", "fork", "forkserver")),
            _torch("--monitor-interval", "S", "0.1", "How often torch's agent looks after its workers."),
            _torch("--signals-to-handle", "NAMES", "SIGTERM,SIGINT,SIGHUP,SIGQUIT", "The signals that end the job "
                   "in order."),
            _torch("--shutdown-timeout", "S", "", "Workers get this long to end before they are killed; 30 if "
                   "TORCH_ELASTIC_SHUTDOWN_TIMEOUT says nothing else."),
            _torch("--numa-binding", "HOW", "", "Bind each worker to the processors near its GPU.", env=False,
                   choices=("node", "socket", "exclusive", "core-complex")),
            _torch("--virtual-local-rank", "", "", "Each worker sees its own GPU alone, as device 0 of LOCAL_RANK 0."),
        ),
    ),
    Group(
        "Logs",
        (
            _torch("--log-dir", "DIR", "", "The directory of log files; each run gets one of its own in it."),
            _torch("--redirects", "WHAT", "0", "Send to files: 1 stdout, 2 stderr, 3 both; or RANK:WHAT,...", "-r"),
            _torch("--tee", "WHAT", "0", "The same, and to the console as well.", "-t"),
            _torch("--local-ranks-filter", "RANKS", "", "Only these local ranks write to the console."),
            _torch("--duplicate-stdout-filters", "TEXTS", "", "Also write lines of stdout that hold one of the texts "
                   "to a file."),
            _torch("--duplicate-stderr-filters", "TEXTS", "", "The same for stderr."),
            _torch("--logs-specs", "NAME", "", "A plug-in (torchrun.logs_specs) that decides where logs go.",
                   env=False),
            _torch("--event-log-handler", "NAME", "null", "A plug-in that gets torch's own events."),
        ),
    ),
    Group(
        "Static rendezvous (torchrun's way without a backend: the number of nodes is fixed)",
        (
            _torch("--node-rank", "N", "0", "The number of this node, from 0."),
            _torch("--master-addr", "ADDR", "127.0.0.1", "The address of node 0."),
            _torch("--master-port", "PORT", "", "A free port on node 0; 29500 if not given."),
        ),
    ),
)  # fmt: skip

OWN_FLAGS = tuple(flag for group in OWN for flag in group.flags)
TORCH_FLAGS = tuple(flag for group in TORCH for flag in group.flags)
