# SPDX-License-Identifier: LGPL-2.1-or-later
"""Folders of certificates and keys, made with certtool and psktool as docs/security.md tells it.

good, other: an authority, a server "localhost" and 127.0.0.1, a client, each; other's authority is
another one. expired: good's authority, a server and a client whose certificates have expired.
expired-server, expired-client: good, but for that one. ending: good, but for 20 days only. nocert: good's authority alone. mixed: a client
of other's authority that believes good's. locked: good, with its keys encrypted; PASSWORD is in
locked/password. psk, psk2: keys of "qemu", which differ. joe: a key of "joe".
"""

import shutil
import subprocess
from pathlib import Path

PASSWORD = "swordfish"


def certtool(*words):
    result = subprocess.run(["certtool", *map(str, words)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def make_key(path):
    certtool("--generate-privkey", "--key-type=ecdsa", "--outfile", path)
    path.chmod(0o600)


def make_authority(folder, name, days=400):
    folder.mkdir()
    make_key(folder / "ca-key.pem")
    template = folder / "ca.info"
    template.write_text(f"cn = {name}\nca\ncert_signing_key\nexpiration_days = {days}\n")
    certtool("--generate-self-signed", "--load-privkey", folder / "ca-key.pem",
             "--template", template, "--outfile", folder / "ca-cert.pem")


def make_peer(folder, kind, authority, expired=False, days=400):
    make_key(folder / f"{kind}-key.pem")
    template = folder / f"{kind}.info"
    lines = ["signing_key", f"tls_www_{kind}", f"cn = {'localhost' if kind == 'server' else 'tester'}"]
    if kind == "server":
        lines += ["dns_name = localhost", "ip_address = 127.0.0.1"]
    if expired:
        lines += ['activation_date = "2020-01-01 00:00:00"', 'expiration_date = "2020-02-01 00:00:00"']
    else:
        lines += [f"expiration_days = {days}"]
    template.write_text("\n".join(lines) + "\n")
    certtool("--generate-certificate", "--load-privkey", folder / f"{kind}-key.pem",
             "--load-ca-privkey", authority / "ca-key.pem",
             "--load-ca-certificate", authority / "ca-cert.pem",
             "--template", template, "--outfile", folder / f"{kind}-cert.pem")


def make_locked(good, folder):
    shutil.copytree(good, folder)
    for side in ("client", "server"):
        certtool("--to-p8", "--load-privkey", good / f"{side}-key.pem", f"--password={PASSWORD}",
                 "--outfile", folder / f"{side}-key.pem")
    for name, text in [("client-key.pem", None), ("server-key.pem", None), ("password", PASSWORD),
                       ("wrong-password", PASSWORD + "\n")]:
        if text is not None:
            (folder / name).write_text(text)
        (folder / name).chmod(0o600)


def make_psk(folder, user="qemu"):
    folder.mkdir()
    path = folder / "keys.psk"
    subprocess.run(["psktool", "-u", user, "-p", str(path)], check=True, capture_output=True)
    path.chmod(0o600)


def make_all(root):
    root = Path(root)
    for name in ("good", "other"):
        make_authority(root / name, f"blockstep tests {name}")
        make_peer(root / name, "server", root / name)
        make_peer(root / name, "client", root / name)
    for name in ("expired", "nocert"):
        (root / name).mkdir()
        shutil.copy(root / "good/ca-cert.pem", root / name)
    make_peer(root / "expired", "client", root / "good", expired=True)
    make_peer(root / "expired", "server", root / "good", expired=True)
    shutil.copytree(root / "good", root / "ending")
    for side in ("server", "client"):
        make_peer(root / "ending", side, root / "good", days=20)
    make_locked(root / "good", root / "locked")
    make_psk(root / "psk")
    make_psk(root / "psk2")
    make_psk(root / "joe", "joe")
    shutil.copytree(root / "other", root / "mixed")
    shutil.copy(root / "good/ca-cert.pem", root / "mixed")
    for side in ("server", "client"):
        shutil.copytree(root / "good", root / f"expired-{side}")
        for part in ("cert", "key"):
            shutil.copy(root / f"expired/{side}-{part}.pem", root / f"expired-{side}")


def psk_secret(folder):
    """The key itself, as text."""
    return (Path(folder) / "keys.psk").read_text().strip().rsplit(":", 1)[1]
