from tests.etcd_servers import etcd, shared_etcd
from tests.process.conftest import make_job

__all__ = ["etcd", "make_job", "shared_etcd"]
