"""
What participants owe the DSO: debts of their addresses, and what was paid beside the ledger.

A settlement may take more from an address than it has (ADR 0004), and where addresses are fresh the
next one begins with nothing owed. So the desk follows every balance below zero: while the address
lasts it counts against what its owner may withdraw, and when the ledger closes its account the debt
is booked to the owner's private account (`Accounts.deposit`). A participant pays its bill to the
DSO in money that the ledger does not see; the operator books that under a reference, once.

References:
    ADR 0005 (private accounts), ADR 0013 (ended addresses).
"""

from __future__ import annotations

from dataclasses import dataclass

from aggregator.accounts import Accounts


@dataclass(frozen=True, slots=True)
class Statement:
    """A participant's account with the DSO."""

    participant: str
    balance_uc: int
    """Below zero: its bill."""
    owed_uc: int
    """Debts of its addresses, which the ledger has not closed yet."""


class Bills:
    """
    Debts and payments, in the books of the private accounts.

    Args:
        accounts: the books, open
    """

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._db = accounts.db
        rows = self._db.query("SELECT address FROM debts")
        self._in_debt = {row["address"] for row in rows}
        """Kept, so that the many balances that are not below zero cost no write."""

    def take_balance(self, address: str, balance_uc: int) -> None:
        """Note what an address holds on the ledger [µ¤]; told again it changes nothing."""
        if balance_uc < 0:
            with self._accounts.atomic():
                self._db.execute(
                    "INSERT OR REPLACE INTO debts VALUES (?, ?)", [address, -balance_uc]
                )
            self._in_debt.add(address)
        elif address in self._in_debt:
            with self._accounts.atomic():
                self._db.execute("DELETE FROM debts WHERE address = ?", [address])
            self._in_debt.discard(address)

    def owed_uc(self, participant: str) -> int:
        """What a participant's addresses owe on the ledger [µ¤]."""
        sql = (
            "SELECT COALESCE(SUM(d.owed_uc), 0) AS n FROM debts d"
            " JOIN addresses a ON a.address = d.address WHERE a.participant = ?"
        )
        return int(next(iter(self._db.query(sql, [participant])))["n"])

    def pay(self, participant: str, amount_uc: int, reference: str, time_ms: int) -> bool:
        """
        Book what a participant paid the DSO, or got from it.

        Args:
            amount_uc: paid by the participant; below zero: paid to it [µ¤]
            reference: names the payment, in the bank's statement for instance
            time_ms: when it is booked

        Returns:
            False when the reference was booked before: then nothing changes.
        """
        with self._accounts.atomic():
            cursor = self._db.execute(
                "INSERT OR IGNORE INTO payments VALUES (?, ?, ?, ?)",
                [reference, participant, amount_uc, time_ms],
            )
            if cursor.rowcount != 1:
                return False
            self._accounts.credit(participant, amount_uc)
        return True

    def statements(self) -> list[Statement]:
        """Everybody with an account, by identity."""
        rows = self._db.query(
            "SELECT participant FROM accounts UNION SELECT participant FROM addresses ORDER BY 1"
        )
        names = [str(row["participant"]) for row in rows]
        return [
            Statement(name, self._accounts.balance_uc(name), self.owed_uc(name)) for name in names
        ]
