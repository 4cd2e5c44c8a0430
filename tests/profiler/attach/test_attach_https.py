"""Certificates are checked as usual: a stranger's is refused in one line, a named one taken."""

import json
import os
import shutil
import ssl
import subprocess

import pytest

from benchmarks.servers.metrics_server import metrics_server
from tests.profiler.command import ttscope

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate that signs itself, for 127.0.0.1, and its key."""
    if shutil.which("openssl") is None:
        assert os.environ.get("CI") != "true", "CI needs openssl"
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    files = [str(folder / name) for name in ("cert.pem", "key.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-out", files[0], "-keyout", files[1]]
    subprocess.run(command, check=True, capture_output=True)
    return files


@pytest.fixture
def server(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with metrics_server(context) as state:
        yield state


@pytest.mark.parametrize("more", [(), ("--workload", "demo")])
def test_a_certificate_that_nobody_vouches_for_is_refused(server, tmp_path, monkeypatch, more):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    done = ttscope("attach", server.url, *more, "--duration", "1s", "-o", tmp_path / "r")
    assert (done.returncode, done.stdout) == (1, "")
    assert "its certificate is not trusted here (SSL_CERT_FILE names" in done.stderr
    assert done.stderr.count("\n") == 1
    assert server.asked == []
    assert not (tmp_path / "r").exists()


def test_one_with_a_named_authority_is_taken(server, certificate, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", certificate[0])
    done = ttscope("attach", server.url, "--duration", "2s", "-o", tmp_path / "r", "--json")
    assert done.returncode == 0, done.stderr
    (watched,) = json.loads(done.stdout)["watched"]
    assert watched["numbers"]["polls"] >= 2


def test_the_doctor_says_it_too(server, certificate, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    done = ttscope("doctor", server.url)
    assert done.returncode == 1
    assert "its certificate is not trusted here" in " ".join(done.stderr.split())
