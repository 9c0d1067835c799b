"""Known answers of X25519, HKDF, AES-GCM and Ed25519 through our calls, and what keeps two keys apart."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import itertools

import pytest
import torch

from defenses.secagg import keys
from defenses.secagg.keys import Context
from defenses.secagg.refusals import Reason, Rejected

CONTEXT = Context(round=3, model=b"m" * 32, parameters=b"p" * 32)


def hexed(text: str) -> bytes:
    return bytes.fromhex(text)


def test_x25519_agrees_as_in_rfc_7748():
    # Section 6.1.
    alice = keys.private_key(hexed("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    bob = keys.private_key(hexed("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    agreed = hexed("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert keys.public_key(alice) == hexed("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert keys.public_key(bob) == hexed("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    assert keys.agree(alice, keys.public_key(bob)) == agreed
    assert keys.agree(bob, keys.public_key(alice)) == agreed


@pytest.mark.parametrize(
    "point",
    [
        bytes(32),
        (1).to_bytes(32, "little"),
        (2**255 - 19).to_bytes(32, "little"),
        # A point of order 8 (RFC 7748 leaves such to a check for zero; this one is widely listed).
        hexed("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    ],
)
def test_a_public_key_of_low_order_is_refused(point):
    with pytest.raises(Rejected) as refused:
        keys.agree(keys.private_key(b"k" * 32), point)
    assert refused.value.reason is Reason.BAD_KEY


@pytest.mark.parametrize(
    ("secret", "salt", "info", "known"),
    [  # RFC 5869, appendix A.1 to A.3; the first 32 bytes of each
        (
            b"\x0b" * 22,
            bytes(range(13)),
            bytes(range(0xF0, 0xFA)),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf",
        ),
        (
            bytes(range(0x50)),
            bytes(range(0x60, 0xB0)),
            bytes(range(0xB0, 0x100)),
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c",
        ),
        (b"\x0b" * 22, b"", b"", "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"),
    ],
)
def test_hkdf_derives_as_in_rfc_5869(secret, salt, info, known):
    assert keys.hkdf(secret, salt, info) == hexed(known)


def test_every_derivation_is_hkdf_with_the_binding_as_the_salt_and_all_names_in_the_info():
    def by_hand(secret: bytes, salt: bytes, purpose: bytes, *names: int) -> bytes:
        info = b""
        for part in (b"mirage secure aggregation 1", purpose, *(name.to_bytes(8, "little") for name in names)):
            info += len(part).to_bytes(8, "little") + part
        extracted = hmac.digest(salt, secret, "sha256")
        return hmac.digest(extracted, info + b"\x01", "sha256")

    secret, bound = b"s" * 32, b"b" * 32
    assert keys.pair_seed(secret, bound, (7, 2)) == by_hand(secret, bound, b"pair mask", 2, 7)
    assert keys.share_key(secret, bound, 7, 2) == by_hand(secret, bound, b"shares", 7, 2)
    assert keys.self_seed(secret, bound, 7) == by_hand(secret, bound, b"self mask", 7)
    assert keys.commitment(secret, CONTEXT, 7) == by_hand(secret, CONTEXT.digest, b"commitment", 7)


@pytest.mark.parametrize(
    ("message", "known"),
    [  # McGrew & Viega 2005, test cases 13 and 14: AES-256-GCM, key and nonce of zeros
        (b"", "530f8afbc74536b9a963b4f1c4cb738b"),
        (bytes(16), "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"),
    ],
)
def test_aes_gcm_encrypts_as_in_its_test_cases(message, known):
    assert keys.encrypt(bytes(32), message, b"") == hexed(known)
    assert keys.decrypt(bytes(32), hexed(known), b"") == message


@pytest.mark.parametrize("changed", ["key", "message", "associated"])
def test_shares_under_anything_else_do_not_decrypt(changed):
    right = {
        "key": b"k" * 32,
        "message": keys.encrypt(b"k" * 32, b"shares", b"from 1 to 2"),
        "associated": b"from 1 to 2",
    }
    assert keys.decrypt(**right) == b"shares"
    other = bytearray(right[changed])
    other[-1] ^= 1
    with pytest.raises(Rejected) as refused:
        keys.decrypt(**right | {changed: bytes(other)})
    assert refused.value.reason is Reason.BAD_SHARE


@pytest.mark.parametrize(
    ("secret", "name", "message", "signature"),
    [  # RFC 8032, section 7.1, tests 1 and 2
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555"
            "fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
    ],
)
def test_ed25519_signs_as_in_rfc_8032(secret, name, message, signature):
    signer = keys.identity(hexed(secret))
    assert keys.name_of(signer) == hexed(name)
    assert keys.sign(signer, hexed(message)) == hexed(signature)
    keys.verify(hexed(name), hexed(signature), hexed(message))
    for wrong in ((hexed(name), hexed(signature), b"else"), (b"\xff" * 32, hexed(signature), hexed(message))):
        with pytest.raises(Rejected) as refused:
            keys.verify(*wrong)
        assert refused.value.reason is Reason.BAD_SEAL


def test_no_two_purposes_clients_or_contexts_share_a_key():
    contexts = [
        CONTEXT,
        dataclasses.replace(CONTEXT, round=4),
        dataclasses.replace(CONTEXT, model=b"n" * 32),
        dataclasses.replace(CONTEXT, parameters=b"q" * 32),
        dataclasses.replace(CONTEXT, label=b"mirage secure aggregation 2"),
        # The same bytes, cut elsewhere.
        dataclasses.replace(CONTEXT, model=b"m" * 33, parameters=b"p" * 31),
    ]
    sessions = [keys.session(context, roster) for context in contexts for roster in (b"r" * 32, b"s" * 32)]
    secret = b"s" * 32
    derived = [keys.commitment(secret, context, client) for context in contexts for client in range(3)]
    for bound in sessions:
        derived += [keys.pair_seed(secret, bound, pair) for pair in itertools.combinations(range(3), 2)]
        derived += [keys.share_key(secret, bound, *pair) for pair in itertools.permutations(range(3), 2)]
        derived += [keys.self_seed(secret, bound, client) for client in range(3)]
    assert len(set(derived)) == len(derived) == 6 * 3 + 12 * (3 + 6 + 3)


def test_a_model_s_hash_tells_models_apart_and_not_the_order_of_their_tensors():
    def tree() -> dict[str, torch.Tensor]:
        return {"w": torch.arange(6.0).view(2, 3), "b": torch.zeros(2), "n": torch.tensor(3)}

    known = keys.model_hash(tree())
    assert keys.model_hash(dict(reversed(tree().items()))) == known
    assert keys.model_hash(tree() | {"w": torch.arange(6.0).view(3, 2).t().contiguous().t().reshape(2, 3)}) == known
    changes: list[dict[str, torch.Tensor]] = [
        {"w": torch.arange(6.0).view(3, 2)},
        {"w": torch.arange(6).view(2, 3)},
        {"w": torch.nextafter(tree()["w"], torch.tensor(9.0))},
        {"b": -torch.zeros(2)},
        {"b": torch.zeros(2, dtype=torch.bfloat16)},
        {"b": torch.zeros(1)},
        {"c": torch.zeros(0)},
    ]
    others = [keys.model_hash(tree() | change) for change in changes]
    assert len({known, *others}) == len(others) + 1
    assert keys.model_hash({}) == hashlib.sha256(keys.fields(keys.LABEL, b"model")).digest()
