/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The control connection to the peer: a QMP client that no peer can hang, or hurt. */
#include "peer_fixture.h"
#include "tls_fixture.h"

#include "replication/peer_link.h"

struct owner {
    unsigned events, lost;
    char last[64];
};

static void note_event(void *arg, const char *name, struct json_object *data)
{
    struct owner *owner = arg;
    owner->events++;
    snprintf(owner->last, sizeof(owner->last), "%s", name);
}

static void note_lost(void *arg)
{
    struct owner *owner = arg;
    owner->lost++;
}

static int open_link(struct fake *fake, struct owner *owner, struct tls_creds *tls,
                     struct peer_link **ret_link, struct err *err) MAY_WAIT
{
    const struct replication_peer_control where = {
        .address = fake->address, .tls = tls, .tls_hostname = tls != NULL ? "localhost" : NULL};
    const struct peer_link_owner owner_calls = {note_event, note_lost, owner};
    *owner = (struct owner){0};
    return peer_link_open(loop_current(), &where, &owner_calls, ret_link, err);
}

static int run(struct peer_link *link, const char *command, uint64_t timeout_ns,
               struct json_object **ret_result, struct err *err) MAY_WAIT
{
    return peer_link_run(link, command, NULL, loop_now_ns(loop_current()) + timeout_ns, ret_result,
                         err);
}

TEST_LOOP(commands_are_answered_and_refusals_keep_their_words)
{
    struct fake fake;
    struct owner owner;
    struct peer_link *link;
    struct json_object *result = NULL;
    struct err err = ERR_INIT;
    fake_begin(&fake);
    assert_int_equal(open_link(&fake, &owner, NULL, &link, &err), 0);
    assert_int_equal(run(link, "query-replication", NS_PER_S, &result, &err), 0);
    assert_string_equal(json_text(result, "role"), "secondary");
    json_object_put(result);
    fake.fault = (struct fake_fault){.kind = FAKE_REFUSE,
                                     .command = "query-replication",
                                     .text = "no way",
                                     .class = "CommandNotFound",
                                     .times = 1};
    assert_int_equal(run(link, "query-replication", NS_PER_S, NULL, &err), -EREMOTEIO);
    assert_int_equal(err.kind, ERR_COMMAND_NOT_FOUND);
    assert_non_null(strstr(err.text, "peer.qmp: no way"));
    assert_int_equal(run(link, "query-replication", NS_PER_S, NULL, &err), 0);
    fake_says(&fake, "{'event':'PING'} {'event':'PONG','data':{'a':1}}");
    test_wait_until(owner.events == 2);
    assert_string_equal(owner.last, "PONG");
    assert_true(peer_link_is_up(link));
    assert_int_equal(owner.lost, 0);
    peer_link_close(link);
    fake_end(&fake);
    test_folder_remove();
}

struct caller {
    struct peer_link *link;
    struct co_group *group;
    int result;
};

static void caller_run(void *arg) MAY_WAIT
{
    struct caller *caller = arg;
    struct err err = ERR_INIT;
    caller->result = run(caller->link, "query-replication", 20 * NS_PER_S, NULL, &err);
    co_group_leave(caller->group);
}

static void many_callers(struct peer_link *link, struct caller *callers, size_t count,
                         struct co_group *group)
{
    co_group_init(group);
    for (size_t i = 0; i < count; i++) {
        callers[i] = (struct caller){.link = link, .group = group};
        co_group_enter(group);
        assert_int_equal(co_spawn(loop_current(), "caller", caller_run, &callers[i]), 0);
    }
}

TEST_LOOP(callers_wait_for_their_turn_and_a_close_ends_them_all)
{
    struct fake fake;
    struct owner owner;
    struct peer_link *link;
    struct caller callers[5];
    struct co_group group;
    struct err err = ERR_INIT;
    fake_begin(&fake);
    assert_int_equal(open_link(&fake, &owner, NULL, &link, &err), 0);
    many_callers(link, callers, ARRAY_LEN(callers), &group);
    co_group_wait(&group);
    for (size_t i = 0; i < ARRAY_LEN(callers); i++)
        assert_int_equal(callers[i].result, 0);
    assert_int_equal(fake.looks, ARRAY_LEN(callers));
    fake.fault = (struct fake_fault){.kind = FAKE_SILENT, .command = "query-replication"};
    many_callers(link, callers, ARRAY_LEN(callers), &group);
    co_yield();
    peer_link_close(link);
    co_group_wait(&group);
    for (size_t i = 0; i < ARRAY_LEN(callers); i++)
        assert_int_equal(callers[i].result, -ESHUTDOWN);
    assert_int_equal(owner.lost, 0);
    fake_end(&fake);
    test_folder_remove();
}

TEST_LOOP(a_peer_that_closes_at_any_byte_costs_an_error)
{
    static const char *const places[] = {"", "qmp_capabilities", "query-replication"};
    struct fake fake;
    fake_begin(&fake);
    for (size_t place = 0; place < ARRAY_LEN(places); place++) {
        for (size_t bytes = 0; bytes < 40; bytes++) {
            struct owner owner;
            struct peer_link *link = NULL;
            struct err err = ERR_INIT;
            bool at_opening = place < 2;
            /* The value itself ends sooner than its line. */
            if ((place == 0 && bytes >= 40) || (place == 1 && bytes >= 19))
                break;
            fake.fault = (struct fake_fault){
                .kind = FAKE_AFTER, .command = places[place], .bytes = bytes, .times = 1};
            int ret = open_link(&fake, &owner, NULL, &link, &err);
            assert_int_equal(ret < 0, at_opening);
            if (!at_opening) {
                assert_true(run(link, "query-replication", 9 * NS_PER_S, NULL, &err) < 0);
                assert_false(peer_link_is_up(link));
                assert_int_equal(owner.lost, 1);
                assert_true(run(link, "query-replication", 9 * NS_PER_S, NULL, &err) < 0);
                peer_link_close(link);
            }
            if (strstr(err.text, "peer.qmp") == NULL)
                fail_msg("'%s' does not say where", err.text);
            assert_int_not_equal(err.code, -ETIMEDOUT);
        }
    }
    fake_end(&fake);
    test_folder_remove();
}

static char *huge(size_t bytes)
{
    char *text = malloc(bytes + 32);
    assert_non_null(text);
    size_t length = (size_t)sprintf(text, "{\"return\":\"");
    memset(text + length, 'x', bytes);
    sprintf(text + length + bytes, "\",\"id\":2}");
    return text;
}

TEST_LOOP(a_peer_that_sends_garbage_costs_an_error_that_says_so)
{
    CLEANUP(free_ptr) char *large = huge(200 * 1024);
    CLEANUP(free_ptr) char *endless = huge(3 * 1024 * 1024);
    const struct {
        const char *text, *part;
    } cases[] = {
        {"}{", "no JSON"},
        {"\r\nHTTP/1.1 400 Bad Request\r\n\r\n", "no JSON"},
        {"\x16\x03\x01{\"return\":{},\"id\":2,\"id\":2}", "no JSON"},
        {"[1,2,3]", "neither an answer nor an event"},
        {"null\n", "neither"},
        {"{}", "neither"},
        {"{\"event\":7}", "neither"},
        {"{\"return\":{}}", "nobody has asked"},
        {"{\"return\":{},\"id\":1}", "nobody has asked"},
        {"{\"return\":{},\"id\":\"2\"}", "nobody has asked"},
        {"{\"error\":{\"class\":\"GenericError\",\"desc\":\"bad input\"}}", "bad input"},
        {large, "more than"},
        {endless, "more than"},
        {"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["
         "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
         "no JSON"},
    };
    struct fake fake;
    fake_begin(&fake);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct owner owner;
        struct peer_link *link = NULL;
        struct err err = ERR_INIT;
        assert_int_equal(open_link(&fake, &owner, NULL, &link, &err), 0);
        fake.fault = (struct fake_fault){
            .kind = FAKE_SAYS, .command = "query-replication", .text = cases[i].text, .times = 1};
        assert_true(run(link, "query-replication", 9 * NS_PER_S, NULL, &err) < 0);
        if (strstr(err.text, cases[i].part) == NULL)
            fail_msg("case %zu: '%s' does not say '%s'", i, err.text, cases[i].part);
        assert_int_equal(owner.lost, 1);
        peer_link_close(link);
    }
    fake_end(&fake);
    test_folder_remove();
}

TEST_LOOP(a_greeting_that_is_none_is_refused)
{
    const struct {
        const char *text, *part;
    } cases[] = {
        {"{\"return\":{}}", "no QMP server"},
        {"NBDMAGICIHAVEOPT", "no JSON"},
        {"7\n", "no QMP server"},
    };
    struct fake fake;
    fake_begin(&fake);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct owner owner;
        struct peer_link *link = NULL;
        struct err err = ERR_INIT;
        fake.fault = (struct fake_fault){
            .kind = FAKE_SAYS, .command = "", .text = cases[i].text, .times = 1};
        assert_true(open_link(&fake, &owner, NULL, &link, &err) < 0);
        if (strstr(err.text, cases[i].part) == NULL)
            fail_msg("case %zu: '%s' does not say '%s'", i, err.text, cases[i].part);
    }
    fake_end(&fake);
    test_folder_remove();
}

TEST_LOOP(a_silent_peer_costs_the_command_its_deadline)
{
    struct fake fake;
    struct owner owner;
    struct peer_link *link = NULL;
    struct err err = ERR_INIT;
    fake_begin(&fake);
    assert_int_equal(open_link(&fake, &owner, NULL, &link, &err), 0);
    fake.fault = (struct fake_fault){.kind = FAKE_SILENT, .command = "query-replication"};
    uint64_t then_ns = loop_now_ns(loop_current());
    assert_int_equal(run(link, "query-replication", 50 * NS_PER_MS, NULL, &err), -ETIMEDOUT);
    assert_true(loop_now_ns(loop_current()) - then_ns >= 50 * NS_PER_MS);
    assert_non_null(strstr(err.text, "no answer to query-replication in time"));
    assert_int_equal(owner.lost, 1);
    peer_link_close(link);
    if (test_loop_is_sim()) {
        fake.fault = (struct fake_fault){.kind = FAKE_SILENT, .command = ""};
        assert_int_equal(open_link(&fake, &owner, NULL, &link, &err), -ETIMEDOUT);
        assert_non_null(strstr(err.text, "does not greet"));
    }
    fake_end(&fake);
    test_folder_remove();
}

TEST_LOOP(tls_is_spoken_when_there_are_credentials_and_asked_for_when_there_are_none)
{
    struct fake fake;
    struct owner owner;
    struct peer_link *link = NULL;
    struct err err = ERR_INIT;
    fake_begin(&fake);
    fake.tls = tls_fixture_load("good", TLS_X509, TLS_SERVER);
    struct tls_creds *good = tls_fixture_load("good", TLS_X509, TLS_CLIENT);
    struct tls_creds *other = tls_fixture_load("other", TLS_X509, TLS_CLIENT);
    assert_int_equal(open_link(&fake, &owner, good, &link, &err), 0);
    assert_int_equal(run(link, "query-replication", 5 * NS_PER_S, NULL, &err), 0);
    peer_link_close(link);
    assert_true(open_link(&fake, &owner, other, &link, &err) < 0);
    assert_non_null(strstr(err.text, "peer.qmp"));
    uint64_t then_ns = loop_now_ns(loop_current());
    assert_true(open_link(&fake, &owner, NULL, &link, &err) < 0);
    assert_non_null(strstr(err.text, "may want TLS"));
    assert_true(loop_now_ns(loop_current()) - then_ns < PEER_LINK_OPEN_NS / 2);
    tls_creds_unref(good);
    tls_creds_unref(other);
    tls_creds_unref(fake.tls);
    fake_end(&fake);
    test_folder_remove();
}

static int make_credentials(void **state)
{
    tls_fixture_make();
    return 0;
}

static int remove_credentials(void **state)
{
    tls_fixture_remove();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(commands_are_answered_and_refusals_keep_their_words),
        cmocka_unit_test(callers_wait_for_their_turn_and_a_close_ends_them_all),
        cmocka_unit_test(a_peer_that_closes_at_any_byte_costs_an_error),
        cmocka_unit_test(a_peer_that_sends_garbage_costs_an_error_that_says_so),
        cmocka_unit_test(a_greeting_that_is_none_is_refused),
        cmocka_unit_test(a_silent_peer_costs_the_command_its_deadline),
        cmocka_unit_test(
            tls_is_spoken_when_there_are_credentials_and_asked_for_when_there_are_none),
    };

    return cmocka_run_group_tests_name("peer link", tests, make_credentials, remove_credentials);
}
