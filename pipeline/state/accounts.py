"""The accounts at the API, and the circuit that stops sending for one of them. Edge: SQL."""

from datetime import datetime

from sqlalchemy import (
    Connection,
    insert,
    or_,
    select,
    update,
)

from pipeline.api.account import Account
from pipeline.errors import DatabaseError
from pipeline.state.conditions import inserted_id
from pipeline.state.jobs import alone
from pipeline.state.tables import accounts


def find_or_add_account(conn: Connection, identity: Account) -> int:
    """Return the number of this account, which is added if it is new.

    Raises DatabaseError if the database holds answers of the emulator and the account is at the API, or vice versa.
    """
    alone(conn)
    other = conn.scalar(select(accounts.c.base_url).where(accounts.c.emulated != identity.emulated).limit(1))
    if other is not None:
        holds, this = ("the API", "the emulator") if identity.emulated else ("the emulator", "the API")
        raise DatabaseError(
            f"this database holds answers of {holds} ({other}), and this command speaks to {this}; "
            "give another database by --database"
        )
    account_id = conn.scalar(
        select(accounts.c.id).where(
            accounts.c.organization == identity.organization,
            accounts.c.workspace == identity.workspace,
            # the emulator has a new port at each start and is still the same account
            or_(accounts.c.base_url == identity.base_url, accounts.c.emulated),
        )
    )
    if account_id is not None:
        return int(account_id)
    values = {name: getattr(identity, name) for name in ("base_url", "organization", "workspace", "emulated")}
    return inserted_id(conn.execute(insert(accounts).values(**values)))


def circuit(conn: Connection, account_id: int) -> str | None:
    """Return why sending on this account has stopped; None: it has not."""
    return conn.scalar(select(accounts.c.circuit_cause).where(accounts.c.id == account_id))


def open_circuit(conn: Connection, account_id: int, cause: str, now: datetime) -> None:
    """Stop sending on this account. cause: the API's message, for people."""
    values = {"circuit_cause": cause, "circuit_at": now}
    conn.execute(update(accounts).where(accounts.c.id == account_id).values(**values))


def close_circuit(conn: Connection, account_id: int) -> None:
    """Allow sending on this account again, after a batch was accepted."""
    values = {"circuit_cause": None, "circuit_at": None}
    conn.execute(update(accounts).where(accounts.c.id == account_id).values(**values))
