"""Secure aggregation: the server learns the sum of the survivors' vectors and, of each one, nothing else.

The protocol of Bonawitz et al. 2017 (CCS, figure 4), on the complete graph or on the sparse one of Bell et al. 2020.
Each client's vector is masked with a mask of its own and one for each neighbour, which that one subtracts; the secrets
of both are dealt in shares, and once the survivors are known each holder gives a share of one of the two.

    keys    Announce → Advert      public keys, and a commitment to the self-mask secret
    shares  Roster → Shares        encrypted for their holders
    masked  Inbox → Masked         the vector
    check   Survivors → Check      a signature under the set of survivors; against a malicious server only
    unmask  Signatures → Unmask    the shares; Survivors → Unmask where there is no check

What holds, for t the threshold and n the clients:

- The sum is that of exactly those whose masked vector came, modulo 2^bits; or there is none (`Aborted`). Recovered
  secrets are compared with what their owners published, so that false shares cannot change it.
- Honest-but-curious server: together with fewer than t of the holders of a client's shares it learns no more than the
  sum over the other survivors. One that lies is another matter: at t ≤ n/2 it has both secrets of a client by telling
  one half of the others that it survived, and the other half that it did not.
- Malicious server (`Parameters.malicious`): the same whatever it says, with a quorum above 2n/3 and fewer than a third
  of the clients corrupt; on a sparse graph as far as `graph.sparse` has it. All must know the clients' identities from
  elsewhere: of a server's own making, it could be everyone's neighbours itself.
- Clients that were sent different models (or another round, or parameters) are not summed, as all keys are derived
  from the `Context`. They notice before they send a masked vector: where clients sign, a neighbour's keys are signed in
  another context; where not, its shares do not decrypt. Then they refuse, and have dropped out. An honest server
  notices by the first message's seal. On a sparse graph it is neighbours who notice; without signatures, a server that
  lies can there run parts of the ring, of t clients each or more, as if they were rounds of their own.

What does not hold: a client may send any vector, and keys or shares that abort the round; who takes part, and who drops
out when, is seen; and the sum tells what it tells.
"""
