"""Keys: X25519 agreements, HKDF-SHA256 derivations that are bound to a context, and Ed25519 identities.

Everything that the clients of a round have to agree on goes into every derivation. The `Context` is what they know
before they meet: the protocol, the round, the hash of the model they were sent, the public parameters. The `session`
adds what the server then told them: everybody's public keys. So two clients that were sent different models, or
different lists of keys, derive different keys from the same agreement: neither can read the other's shares, and their
masks would not cancel.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from defenses.secagg.refusals import Reason, Rejected

if TYPE_CHECKING:
    import torch

LABEL = b"mirage secure aggregation 1"
KEY_BYTES = 32
SIGNATURE_BYTES = 64
TAG_BYTES = 16

_NONCE = bytes(12)
_NAME = struct.Struct("<QQ")  # a number as one of `fields`
_PROBE = X25519PrivateKey.from_private_bytes(bytes(KEY_BYTES))


def fields(*parts: bytes) -> bytes:
    """The parts in one string, each with its length before it, so that no two lists give the same string."""
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def number(value: int) -> bytes:
    """8 bytes, little-endian."""
    return value.to_bytes(8, "little")


def model_hash(tree: Mapping[str, torch.Tensor]) -> bytes:
    """SHA-256 of a model: its tensors' names, types, shapes and bytes, whatever the order or device of the dict."""
    import torch  # here, as a client that is a process of its own, without a model, need not wait for it

    digest = hashlib.sha256(fields(LABEL, b"model"))
    for name in sorted(tree):
        value = tree[name].detach().cpu().contiguous()
        shape = b"".join(number(size) for size in value.shape)
        data = value.reshape(-1).view(dtype=torch.uint8).numpy()
        digest.update(fields(name.encode(), str(value.dtype).encode(), shape, number(data.nbytes)))
        digest.update(data.data)
    return digest.digest()


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the clients of a round have to agree on before they meet.

    round: its number, never used twice with the same clients. model: `model_hash` of what the server sent out.
    parameters: `Parameters.digest`. label: the protocol and its version.
    """

    round: int
    model: bytes
    parameters: bytes
    label: bytes = LABEL

    @cached_property
    def digest(self) -> bytes:
        """32 bytes, different for any two contexts that differ."""
        parts = fields(self.label, b"context", number(self.round), self.model, self.parameters)
        return hashlib.sha256(parts).digest()


def session(context: Context, roster: bytes) -> bytes:
    """32 bytes that name a context together with the digest of everybody's public keys."""
    return hashlib.sha256(fields(context.label, b"session", context.digest, roster)).digest()


def derive(secret: bytes, binding: bytes, purpose: str, *names: int) -> bytes:
    """HKDF-SHA256 (RFC 5869): 32 bytes from `secret`, bound to a context's digest or a session as the salt.

    `purpose` and `names` (client numbers) are the info, which keeps the keys of different uses and clients apart.
    """
    info = b"".join([_purpose(purpose), *(_NAME.pack(8, name) for name in names)])  # fields(LABEL, purpose, *names)
    return hkdf(secret, binding, info)


@lru_cache(maxsize=64)
def _purpose(purpose: str) -> bytes:
    return fields(LABEL, purpose.encode())


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869), its first 32 bytes."""
    return HKDF(hashes.SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(secret)


def private_key(secret: bytes) -> X25519PrivateKey:
    """The X25519 key of 32 secret bytes."""
    return X25519PrivateKey.from_private_bytes(secret)


def public_key(private: X25519PrivateKey) -> bytes:
    """Its public key, 32 bytes."""
    return private.public_key().public_bytes_raw()


def agree(own: X25519PrivateKey, other: bytes) -> bytes:
    """X25519 (RFC 7748): 32 bytes that both ends of a pair of keys share, to derive from and not to use as they are.

    Raises Rejected (BAD_KEY) for the few public keys that give the same result to everyone.
    """
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:
        raise Rejected(Reason.BAD_KEY, "a public key of low order") from None


def check_public(key: bytes) -> None:
    """Raise Rejected (BAD_KEY) for a public key that no one can agree with."""
    agree(_PROBE, key)


def pair_seed(agreed: bytes, session: bytes, pair: tuple[int, int]) -> bytes:
    """The seed of the mask that clients `pair`, in either order, put on their vectors with opposite signs.

    `agreed` is what their mask keys agree on.
    """
    return derive(agreed, session, "pair mask", min(pair), max(pair))


def self_seed(secret: bytes, session: bytes, client: int) -> bytes:
    """The seed of the mask that a client puts on its own vector, from the secret that it deals in shares."""
    return derive(secret, session, "self mask", client)


def share_key(agreed: bytes, session: bytes, sender: int, receiver: int) -> bytes:
    """The AES-256-GCM key of the one message of shares that `sender` sends to `receiver` in this session.

    `agreed` is what their share keys agree on. A key for each direction, used once: so a nonce has nothing to add.
    """
    return derive(agreed, session, "shares", sender, receiver)


def encrypt(key: bytes, message: bytes, associated: bytes) -> bytes:
    """AES-256-GCM under a key that encrypts nothing else, hence with nonce 0; 16 bytes longer than the message."""
    return AESGCM(key).encrypt(_NONCE, message, associated)


def decrypt(key: bytes, message: bytes, associated: bytes) -> bytes:
    """What was encrypted. Raises Rejected (BAD_SHARE) if key, message or associated data are any other."""
    try:
        return AESGCM(key).decrypt(_NONCE, message, associated)
    except InvalidTag:
        raise Rejected(Reason.BAD_SHARE, "shares that were sealed with another key, or for someone else") from None


def commitment(secret: bytes, context: Context, client: int) -> bytes:
    """What a client publishes of its self-mask secret: enough to tell a false one, nothing to find it by."""
    return derive(secret, context.digest, "commitment", client)


def identity(secret: bytes) -> Ed25519PrivateKey:
    """The Ed25519 identity of 32 secret bytes."""
    return Ed25519PrivateKey.from_private_bytes(secret)


def name_of(identity: Ed25519PrivateKey) -> bytes:
    """Its public key, 32 bytes: what stands in a registry of clients."""
    return identity.public_key().public_bytes_raw()


def sign(identity: Ed25519PrivateKey, message: bytes) -> bytes:
    """An Ed25519 signature (RFC 8032), 64 bytes."""
    return identity.sign(message)


def verify(name: bytes, signature: bytes, message: bytes) -> None:
    """Raise Rejected (BAD_SEAL) unless the one who is registered as `name` signed `message`."""
    try:
        Ed25519PublicKey.from_public_bytes(name).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise Rejected(Reason.BAD_SEAL, "a signature by someone else, or of something else") from None
