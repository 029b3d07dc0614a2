"""The manifests for Kubernetes: an Indexed Job whose pods meet in etcd, or one pod of a pool. Pure."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from spotrun.cluster.request import Request

GRACE_S = 25  # GKE gives pods on spot machines no more

_MANIFEST = """\
# One pod is one node. A pod whose machine goes away is replaced; the others train on.
apiVersion: v1
kind: Service
metadata:
  name: {name}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    batch.kubernetes.io/job-name: {name}
---
apiVersion: batch/v1
kind: Job
metadata:
  name: {name}
spec:
  completionMode: Indexed
  completions: {pods}
  parallelism: {pods}
  # A pod ends with 0 when the training is done, and with 143 when it was told to go.
  successPolicy:
    rules:
      - succeededCount: 1
  backoffLimit: 100
  podFailurePolicy:
    rules:
      - action: Ignore # preempted, evicted, its machine gone
        onPodConditions:
          - type: DisruptionTarget
            status: "True"
      - action: Ignore # drained, or killed with its machine
        onExitCodes:
          containerName: spotrun
          operator: In
          values: [137, 143]
      - action: FailJob # the job failed (1), a wrong setting (2), a job that has ended (4), a bad checkpoint (5)
        onExitCodes:
          containerName: spotrun
          operator: In
          values: [1, 2, 4, 5]
  template:
    spec:
      subdomain: {name}
{spec}"""

_POD = """\
# One node of a job, as `spotrun pool` asks for it.
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  labels:
    app.kubernetes.io/managed-by: spotrun-pool
spec:
{spec}"""

_SPEC = """\
restartPolicy: Never
terminationGracePeriodSeconds: {grace}
tolerations:
  - key: cloud.google.com/gke-spot
    operator: Exists
  - key: kubernetes.azure.com/scalesetpriority
    operator: Equal
    value: spot
  - key: nvidia.com/gpu
    operator: Exists
affinity:
  nodeAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 1
        preference:
          matchExpressions:
            - key: cloud.google.com/gke-spot
              operator: In
              values: ["true"]
      - weight: 1
        preference:
          matchExpressions:
            - key: kubernetes.azure.com/scalesetpriority
              operator: In
              values: [spot]
      - weight: 1
        preference:
          matchExpressions:
            - key: karpenter.sh/capacity-type
              operator: In
              values: [spot]
containers:
  - name: spotrun
    image: {image}
    # A list, so that spotrun itself is process 1 and gets SIGTERM.
    command: [spotrun, run]
    args: {arguments}
    env:
      - name: SPOTRUN_NODE_ID
        valueFrom:
          fieldRef:
            fieldPath: metadata.name
      - name: TERMINATION_GRACE_PERIOD_SECONDS
        value: "{grace}"
    resources:
      limits: {limits}
    volumeMounts:
      - name: shm
        mountPath: /dev/shm
volumes:
  - name: shm # the 64 MB of a container are too few for data loaders and snapshots
    emptyDir:
      medium: Memory
"""


@dataclass(frozen=True, slots=True)
class KubernetesOptions:
    image: str
    gpus_per_node: int = 0
    grace_s: int = GRACE_S


def manifest(request: Request, options: KubernetesOptions) -> str:
    """What `kubectl apply -f` is given."""
    arguments = [f"--nnodes={request.nnodes}", f"--rdzv-id={request.name}", *request.arguments]
    return _MANIFEST.format(
        name=request.name, pods=request.max_nodes, spec=textwrap.indent(_spec(arguments, options), " " * 6)
    )


def pod(name: str, zone: str, arguments: Sequence[str], options: KubernetesOptions) -> str:
    """One pod, in a zone if one is named."""
    spec = _spec(arguments, options)
    if zone:
        spec += f"nodeSelector: {json.dumps({'topology.kubernetes.io/zone': zone})}\n"
    return _POD.format(name=name, spec=textwrap.indent(spec, "  "))


def _spec(arguments: Sequence[str], options: KubernetesOptions) -> str:
    limits = {"nvidia.com/gpu": options.gpus_per_node} if options.gpus_per_node else {}
    return _SPEC.format(
        grace=options.grace_s,
        image=json.dumps(options.image),
        arguments=json.dumps(list(arguments)),
        limits=json.dumps(limits),
    )
