"""A fresh key, a request for a certificate over it, and the check of what comes back.

Invariants: the key is made on this device and nothing but its public half leaves it.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge_agg.contract.errors import IdentityInvalid
from edge_agg.errors import EnrollmentFailed
from edge_agg.identity.credentials import identity_of
from edge_agg.identity.files import fits


class Request:
    """One request, with the key that it is about."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())

    @property
    def csr(self) -> bytes:
        """The request, in DER; it claims no name, for the authority knows better."""
        blank = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return blank.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    @property
    def key(self) -> bytes:
        """The key in PEM, for its file."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def check(self, chain: bytes, anchors: bytes) -> str:
        """The id in a certificate that came back; raises EnrollmentFailed if it is not over this key."""
        try:
            x509.load_pem_x509_certificates(anchors)
            named = identity_of(x509.load_pem_x509_certificate(chain))
        except (ValueError, IdentityInvalid):
            raise EnrollmentFailed("what came back is no certificate of an agent") from None
        if not fits(chain, self.key):
            raise EnrollmentFailed("what came back is not over this device's key")
        return str(named)
