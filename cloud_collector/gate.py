"""Who calls, and may they make this call? Every call of every service passes here first.

Place: step 9 of an event's path, before the service; what it found out travels beside the call as :func:`caller`.
Invariants: an identity is a certificate's one SPIFFE id or a token's row, never a word of the request; a method that
ALLOWED does not name is for nobody but local callers; the certificate's end, the list of what is denied and the token
are looked at in every call, whatever the connection's age; an answer that is not read in time is let go of.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import secrets
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import grpc
from cryptography import x509

from cloud_collector.admission import Refused
from cloud_collector.caller import EVERYTHING, LOCAL, Caller, Kind, Scopes
from cloud_collector.denied import fingerprints
from cloud_collector.errors import StoreFailed
from cloud_collector.telemetry import Event, begin_request, caller_named, emit, name_caller
from edge_agg.contract.errors import IdentityInvalid
from edge_agg.contract.refusal import PUSHBACK_KEY, REFUSAL_KEY, RULES, Refusal
from edge_agg.contract.spiffe import SpiffeId

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
    from datetime import datetime

    from cloud_collector.denied import DenyList
    from cloud_collector.tokens import Tokens

    Context = grpc.aio.ServicerContext[Any, Any]
    Identify = Callable[[Context], Caller]
    Handler = grpc.RpcMethodHandler[Any, Any]

PUSHBACK_MS = (200, 1000)
"""The least and most that an overloaded collector asks its callers to wait; each is told a random time between."""
HAND_OUT_S = 60.0
"""How long a caller may take to read one answer, in all, while it counts as in work."""
_ANYBODY = frozenset({Kind.AGENT, Kind.ANALYST, Kind.STRANGER})
ALLOWED: dict[str, frozenset[Kind]] = {
    "/edge_agg.contract.v1.CollectorService/PushReleases": frozenset({Kind.AGENT}),
    "/edge_agg.contract.v1.CollectorService/SayHead": frozenset({Kind.AGENT}),
    "/edge_agg.contract.v1.QueryService/ListPlans": frozenset({Kind.ANALYST}),
    "/edge_agg.contract.v1.QueryService/Estimate": frozenset({Kind.ANALYST}),
    "/edge_agg.contract.v1.QueryService/Coverage": frozenset({Kind.ANALYST}),
    "/edge_agg.contract.v1.EnrollmentService/GetTrust": _ANYBODY,
    "/edge_agg.contract.v1.EnrollmentService/Enroll": frozenset({Kind.STRANGER}),
    "/edge_agg.contract.v1.EnrollmentService/Renew": frozenset({Kind.AGENT}),
    "/grpc.health.v1.Health/Check": _ANYBODY,
    "/grpc.health.v1.Health/List": frozenset({Kind.AGENT, Kind.ANALYST}),
    "/grpc.health.v1.Health/Watch": frozenset({Kind.AGENT, Kind.ANALYST}),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": frozenset({Kind.ANALYST}),
}
"""Who may call what, over TLS; local callers may call everything."""
MAX_CHAIN_BYTES = 16 * 1024
MAX_CHAIN = 8
"""Certificates in PEM that a caller may show, their own among them; TLS itself takes six times as much."""
_caller: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller:
    """Who makes the call that this task serves; raises LookupError where no gate stands before the service."""
    return _caller.get()


def local(context: Context) -> Caller:
    """Whoever calls, where the collector listens on loopback without TLS."""
    del context
    return LOCAL


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """What a certificate says that the handshake has verified."""

    id: SpiffeId
    text: str
    """The id, written down."""
    serial: int
    begins: datetime
    ends: datetime
    fingerprints: tuple[str, ...]
    """sha256 of the certificate in hex, of every form."""
    of_issuers: tuple[str, ...]
    """The same of the issuers that came with it."""


class Identification:
    """Works out who calls over TLS.

    Args:
        domain: the trust domain; ids of others are nobody's.
        denied: the list of what is taken no more.
        tokens: the analysts' tokens.
        now: the time in UTC.
        scopes: which plans an analyst with a certificate may ask about.
    """

    def __init__(
        self, *, domain: str, denied: DenyList, tokens: Tokens, now: Callable[[], datetime], scopes: Scopes = EVERYTHING
    ) -> None:
        self._domain = domain
        self._scopes = scopes
        self._denied = denied
        self._tokens = tokens
        self._now = now

    def __call__(self, context: Context) -> Caller:
        """Who makes a call; raises Refused."""
        proved: Mapping[str, Any] = context.auth_context()
        certificate = proved.get("x509_pem_cert")
        if certificate:
            return self._certified(certificate[0], b"".join(proved.get("x509_pem_cert_chain", ())))
        tokens = [str(value) for key, value in context.invocation_metadata() or () if key == "authorization"]
        if not tokens:
            return Caller(kind=Kind.STRANGER)
        scheme, _, secret = tokens[0].partition(" ")
        found = self._tokens.caller(secret, self._now()) if len(tokens) == 1 and scheme == "Bearer" else None
        if found is None:
            raise Refused(Refusal.UNAUTHENTICATED)
        name_caller(f"{found.tenant}/analyst/{found.name}")
        return found

    def _certified(self, certificate: bytes, chain: bytes) -> Caller:
        long = len(certificate) + len(chain) > MAX_CHAIN_BYTES or chain.count(b"-----BEGIN") > MAX_CHAIN
        shown = None if long else _shown(certificate, chain)  # what is kept of callers is bounded in bytes
        if shown is not None:
            name_caller(shown.text)
        if shown is None or shown.id.domain != self._domain or not shown.begins <= self._now() < shown.ends:
            raise Refused(Refusal.UNAUTHENTICATED)
        prints = shown.fingerprints + shown.of_issuers
        if self._denied.denies(serial=shown.serial, spiffe_id=shown.text, fingerprints=prints):
            raise Refused(Refusal.REVOKED)
        plans = self._scopes.plans(shown.id.tenant, shown.id.name) if shown.id.analyst else None
        return Caller.of(shown.id, serial=shown.serial, fingerprints=shown.fingerprints, ends=shown.ends, plans=plans)


@lru_cache(maxsize=4096)
def _shown(certificate: bytes, chain: bytes) -> _Shown | None:
    """Read a certificate in PEM and the issuers that came with it; None if it names no caller, or more than one."""
    try:
        own = x509.load_pem_x509_certificate(certificate)
        issuers = x509.load_pem_x509_certificates(chain) if chain else []
        names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        spiffe_id = SpiffeId.parse(uri)
    except (ValueError, x509.ExtensionNotFound, IdentityInvalid):
        return None
    return _Shown(
        id=spiffe_id,
        text=str(spiffe_id),
        serial=own.serial_number,
        begins=own.not_valid_before_utc,
        ends=own.not_valid_after_utc,
        fingerprints=fingerprints(own),
        of_issuers=tuple(form for one in issuers for form in fingerprints(one)),
    )


class Gate(grpc.aio.ServerInterceptor):
    """Stands before every method of a server."""

    def __init__(self, identify: Identify) -> None:
        self._identify = identify
        self._guards: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Put the gate before a method's handler; a method that is not there stays unimplemented."""
        method = handler_call_details.method
        guard = self._guards.get(method)
        if guard is None:  # once: what serves a method stays what it is, and only methods that are there are kept
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            guard = self._guards[method] = _guarded(handler, method, self._enter)
        return guard

    async def _enter(self, method: str, context: Context) -> None:
        begin_request()
        try:
            found = self._identify(context)
            _check_allowed(method, found)
        except Refused as error:
            await refuse(method, context, error.refusal)
        except StoreFailed:
            await refuse(method, context, Refusal.STORE_FAILED)
        except Exception as error:  # noqa: BLE001  # promise A6: nothing unforeseen may leave, and nobody gets in by it
            await fail(method, context, type(error).__name__)
        _caller.set(found)


def _check_allowed(method: str, found: Caller) -> None:
    if found.kind is Kind.LOCAL or found.kind in ALLOWED.get(method, frozenset()):
        return
    raise Refused(Refusal.UNAUTHENTICATED if found.kind is Kind.STRANGER else Refusal.FORBIDDEN)


def _guarded(handler: Handler, method: str, enter: Callable[[str, Context], Awaitable[None]]) -> Handler:
    inner: Any = handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary

    async def one(request: Any, context: Context) -> Any:
        await enter(method, context)
        return await inner(request, context)

    async def many(request: Any, context: Context) -> None:
        await enter(method, context)
        if not inspect.isasyncgenfunction(inner):
            await inner(request, context)
            return
        async with contextlib.aclosing(inner(request, context)) as parts:
            await _hand_out(method, parts, context)

    made = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    body: Any = many if handler.response_streaming else one
    guarded: Handler = made(
        body, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
    )
    return guarded


async def _hand_out(method: str, parts: AsyncGenerator[Any, None], context: Context) -> None:
    """Send an answer's parts; a caller who does not read them in time keeps the stream, but no place of others'."""
    left, loop = HAND_OUT_S, asyncio.get_running_loop()
    async for part in parts:
        began, writing = loop.time(), asyncio.ensure_future(context.write(part))
        try:
            sent, _ = await asyncio.wait({writing}, timeout=left)
            if not sent:
                await parts.aclose()
            await writing  # a call takes no status before that: whoever never reads hears none, and ends with age
            if not sent:
                await refuse(method, context, Refusal.OVERLOADED)
        finally:
            writing.cancel()
        left -= loop.time() - began


async def refuse(method: str, context: Context, refusal: Refusal) -> None:
    """End a call by the contract's table: a code, a constant text, a status; raises, as `abort` does."""
    _name_peer(context)
    emit(Event.REQUEST_REFUSED, method=method, refusal=str(refusal))
    least, most = PUSHBACK_MS
    trailing = [(REFUSAL_KEY, str(refusal))]
    if refusal is Refusal.OVERLOADED:
        trailing.append((PUSHBACK_KEY, str(least + secrets.randbelow(most - least + 1))))
    rule = RULES[refusal]
    await context.abort(grpc.StatusCode[rule.status], rule.text, tuple(trailing))


async def fail(method: str, context: Context, cause: str) -> None:
    """End a call that met something unforeseen: a random id for the log, and nothing else."""
    request_id = begin_request()
    _name_peer(context)
    emit(Event.REQUEST_FAILED, method=method, request_id=request_id, cause=cause)
    rule = RULES[Refusal.INTERNAL]
    details = f"{rule.text} ({request_id})"
    await context.abort(grpc.StatusCode[rule.status], details, ((REFUSAL_KEY, str(Refusal.INTERNAL)),))


def _name_peer(context: Context) -> None:
    """Name a caller who showed nothing by their address."""
    if not caller_named():
        name_caller(context.peer())
