"""
Simplex consensus, one epoch, without I/O: the rules R1 to R6 of the protocol.

The protocol on one page
------------------------
Validators go through **views** 1, 2, 3 …; each has one leader. In a view a validator may say three
things, each signed and logged to disk before it is published:

    NOTARIZE b   "b is valid here"           at most one block per view
    NULLIFY      "skip this view"            after a timeout or a bad proposal; never after FINALIZE
    FINALIZE b   "b was notarized in time"   never after NULLIFY

A quorum of one of these is a certificate. A notarization or a nullification ends the view; a
finalization makes the block and all its ancestors final.

    leader             others                     everyone
      │  proposal b      │                            │
      ├────────────────► │  NOTARIZE b  ────────────► │ q of them: enter the next view
      │                  │                            │ and FINALIZE b ──────► q of them: b is final
      (silence, 2Δ / 3Δ) │  NULLIFY     ────────────► │ q of them: enter the next view

A proposal carries its own right to exist (`Justify`): the notarization of its parent, and the
nullification of every view in between. So nobody needs a lock or a view-change message:

- Two quorums share an honest validator, who notarizes one block per view and never both finalizes
  and nullifies a view. Hence one notarization per view, and no view both finalized and nullified.
- A block notarized later than a final b must have a parent at b's view or later, because skipping
  b's view would need its nullification. By induction it descends from b.

Nothing of this depends on time. Time is for progress only: Δ grows by half with every view that ends
without a notarization, and falls back to Δ0 with the next one.

Deviations from the paper (B. Chan and R. Pass, "Simplex Consensus: A Simple and Fast Consensus
Protocol", TCC 2023)
----------------------------------------------------------------------------------------------------
1. Leaders come from a schedule (Proof of Energy) instead of a hash of the view number.
2. A proposal carries a notarization and the nullifications since, instead of the whole notarized
   chain; its hash is in the header, so a block can be judged by itself for ever.
3. The finalize vote names its block, and a finalization certificate is kept and shown; a
   finalization may stand for its block's notarization in a later justify (a quorum that finalizes
   contains an honest validator that saw the notarization).
4. FINALIZE may be signed after the view has ended (the body came late), if the view was not and will
   never be nullified by this validator.
5. Two timers (2Δ for the proposal, 3Δ for the view) instead of one, growing Δ, none while idle:
   they run only when this validator has work, saw a message of the view, or knows an unfinalised
   block. A leader that was silent in its last turns gets no time until it is heard again.
6. A leader that nullifies its own view is followed at once.
7. The paper's players forward every certificate. Here votes reach everybody through the broker, and
   what is lost is repaired: the stuck republish what they said, the others answer with certificates.
8. Votes, and the proposals and certificates they rest on, are logged, so that a validator may crash
   and come back without contradicting itself.
9. Epochs: a final *seal* block ends the instance. Its descendants must be empty and are dropped: if
   one is finalized, that finalization is the proof of the seal.
"""

from __future__ import annotations

from ledger.protocol import (
    Effect,
    Epoch,
    Event,
)

