/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * read-pattern=quorum: all children are read, and what most of them say is the answer, if at least
 * vote-threshold of them say it. Contents are compared whole, not by digests. When two contents have
 * as many votes there is no winner, and the read fails: either could be wrong.
 *
 * A child that has missed an acknowledged write has no vote.
 */
#include "drivers/quorum_internal.h"

#include "base/log.h"
#include "block/graph.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* One read of all children; on the stack of its coroutine. */
struct ballot {
    unsigned count;
    struct vote {
        struct ballot *ballot;
        struct edge *edge;
        struct io io;
        struct buf *buf; /* NULL: the first one reads into the request's own */
        int result;
        unsigned votes; /* 0: failed, or somebody before it says the same */
    } votes[QUORUM_MAX_CHILDREN];
    struct co_group group;
};

static void vote_main(void *arg) MAY_WAIT
{
    struct vote *vote = arg;

    vote->result = io_read(vote->edge, &vote->io);
    co_group_leave(&vote->ballot->group);
}

static int ballot_fill(struct node *node, struct ballot *ballot, const struct io *io)
{
    const struct quorum *quorum = quorum_of(node);
    struct buf_pool *pool = loop_bufs(graph_loop(node->graph));

    ballot->count = 0;
    for (unsigned i = 0; i < quorum->count; i++) {
        struct vote *vote = &ballot->votes[ballot->count];

        if (quorum->children[i].missed)
            continue;
        *vote = (struct vote){.ballot = ballot, .edge = quorum->children[i].edge, .io = *io};
        if (ballot->count > 0) {
            vote->buf = buf_alloc(pool, io->length_bytes);
            if (vote->buf == NULL)
                return -ENOMEM;
            vote->io.data = buf_slice_of(vote->buf, 0, io->length_bytes);
        }
        ballot->count++;
    }
    return 0;
}

static void ballot_release(struct ballot *ballot)
{
    for (unsigned i = 0; i < ballot->count; i++)
        buf_unref(ballot->votes[i].buf);
}

static void ballot_read(struct node *node, struct ballot *ballot) MAY_WAIT
{
    struct loop *loop = graph_loop(node->graph);

    co_group_init(&ballot->group);
    for (unsigned i = 1; i < ballot->count; i++) {
        struct vote *vote = &ballot->votes[i];

        co_group_enter(&ballot->group);
        if (co_spawn_now(loop, "quorum read", vote_main, vote) < 0)
            vote_main(vote);
    }
    ballot->votes[0].result = io_read(ballot->votes[0].edge, &ballot->votes[0].io);
    (void)co_group_wait(&ballot->group);
}

static bool same_bytes(const struct vote *a, const struct vote *b)
{
    return memcmp(a->io.data.bytes, b->io.data.bytes, a->io.length_bytes) == 0;
}

/* Gives each successful read's vote to the first that says the same. */
static void ballot_tally(struct ballot *ballot)
{
    for (unsigned i = 0; i < ballot->count; i++) {
        struct vote *vote = &ballot->votes[i];
        unsigned first = 0;

        vote->votes = 0;
        if (vote->result < 0)
            continue;
        while (first < i &&
               (ballot->votes[first].votes == 0 || !same_bytes(&ballot->votes[first], vote)))
            first++;
        ballot->votes[first].votes++;
    }
}

/* The content that has more votes than any other, or NULL. */
static struct vote *ballot_winner(struct ballot *ballot)
{
    struct vote *winner = NULL;
    bool tie = false;

    for (unsigned i = 0; i < ballot->count; i++) {
        struct vote *vote = &ballot->votes[i];

        if (winner == NULL || vote->votes > winner->votes) {
            winner = vote;
            tie = false;
        } else {
            tie = tie || vote->votes == winner->votes;
        }
    }
    return tie ? NULL : winner;
}

static unsigned ballot_successes(const struct ballot *ballot)
{
    unsigned count = 0;

    for (unsigned i = 0; i < ballot->count; i++)
        count += ballot->votes[i].result == 0;
    return count;
}

static int ballot_error(const struct ballot *ballot)
{
    int results[QUORUM_MAX_CHILDREN];

    for (unsigned i = 0; i < ballot->count; i++)
        results[i] = ballot->votes[i].result;
    return quorum_vote_error(results, ballot->count);
}

/* blkverify: the two must say the same, for ever. */
static int verify(struct node *node, const struct ballot *ballot, const struct io *io)
{
    struct quorum *quorum = quorum_of(node);
    const uint8_t *a = ballot->votes[0].io.data.bytes, *b = ballot->votes[1].io.data.bytes;
    uint64_t at = 0;

    while (a[at] == b[at])
        at++;
    quorum->differed = true;
    log_error("quorum", "node '%s' (blkverify): '%s' and '%s' differ at %" PRIu64 ": all fails now",
              node->name, ballot->votes[0].edge->child->name, ballot->votes[1].edge->child->name,
              io->offset_bytes + at);
    quorum_report_failure(node, io->offset_bytes, io->length_bytes);
    return -EIO;
}

static void report_errors(const struct ballot *ballot, const struct io *io)
{
    for (unsigned i = 0; i < ballot->count; i++) {
        const struct vote *vote = &ballot->votes[i];

        if (unlikely(vote->result < 0))
            quorum_report_bad(vote->edge, "read", io->offset_bytes, io->length_bytes, vote->result);
    }
}

/* Who says something else than the winner is told of, and corrected when that is wanted. Others may be
 * correcting the same: they write the same. A correction that fails changes nothing: the next read
 * tells of it again. */
static void treat_losers(struct node *node, struct ballot *ballot, const struct vote *winner)
    MAY_WAIT
{
    struct quorum *quorum = quorum_of(node);
    bool correct = quorum->rewrites && !node->read_only;

    for (unsigned i = 0; i < ballot->count; i++) {
        struct vote *vote = &ballot->votes[i];
        struct io io = winner->io;

        if (vote->result < 0 || same_bytes(vote, winner))
            continue;
        quorum_report_bad(vote->edge, "read", io.offset_bytes, io.length_bytes, 0);
        io.flags = 0;
        if (correct && io_write(vote->edge, &io) == 0)
            quorum->corrected++;
    }
}

/* The ballot is read, and nothing changes the range meanwhile. */
static int ballot_decide(struct node *node, struct ballot *ballot, struct io *io) MAY_WAIT
{
    struct quorum *quorum = quorum_of(node);
    struct vote *winner;

    ballot_tally(ballot);
    winner = ballot_winner(ballot);
    report_errors(ballot, io);
    if (ballot_successes(ballot) < quorum->threshold) {
        quorum_report_failure(node, io->offset_bytes, io->length_bytes);
        return ballot_error(ballot);
    }
    if (likely(winner != NULL && winner->votes == ballot_successes(ballot))) {
        if (winner != &ballot->votes[0])
            memcpy(io->data.bytes, winner->io.data.bytes, io->length_bytes);
        return 0;
    }
    if (quorum->verifies)
        return verify(node, ballot, io);
    if (winner == NULL || winner->votes < quorum->threshold) {
        quorum_report_failure(node, io->offset_bytes, io->length_bytes);
        return -EIO;
    }
    treat_losers(node, ballot, winner);
    if (winner != &ballot->votes[0])
        memcpy(io->data.bytes, winner->io.data.bytes, io->length_bytes);
    return 0;
}

int quorum_vote_read(struct node *node, struct io *io)
{
    struct quorum *quorum = quorum_of(node);
    struct range_lock lock;
    struct ballot ballot;
    int ret;

    if (unlikely(quorum->differed))
        return -EIO;
    range_lock_acquire(&quorum->locks, &lock, io->offset_bytes, io->length_bytes, false);
    ret = ballot_fill(node, &ballot, io);
    if (ret == 0) {
        ballot_read(node, &ballot);
        ret = ballot_decide(node, &ballot, io);
    }
    ballot_release(&ballot);
    range_lock_release(&quorum->locks, &lock);
    return ret;
}

int quorum_vote_error(const int *results, unsigned count)
{
    int error = -EIO;
    unsigned most = 0;

    for (unsigned i = 0; i < count; i++) {
        unsigned same = 0;

        for (unsigned j = 0; j < count && results[i] < 0; j++)
            same += results[j] == results[i];
        if (same > most) {
            most = same;
            error = results[i];
        }
    }
    return error;
}
