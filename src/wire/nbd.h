/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The messages of the NBD protocol as bytes: fixed newstyle negotiation, transmission, simple and
 * structured replies. No I/O, no allocation, no state.
 *
 * Decoders take bytes from a peer and trust none: they return 0, or -EPROTO when the bytes are not
 * such a message, and never look beyond the length given. Texts that they return point into the
 * message and have no final zero. Encoders fill a caller's array of the stated size.
 *
 * The names and numbers are those of the NetworkBlockDevice project's doc/proto.md.
 */
#ifndef BLOCKSTEP_WIRE_NBD_H
#define BLOCKSTEP_WIRE_NBD_H

#include "wire/be.h"

#define NBD_INIT_MAGIC       UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC     UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_OPT_REPLY_MAGIC  UINT64_C(0x0003e889045565a9)
#define NBD_REQUEST_MAGIC    0x25609513u
#define NBD_SIMPLE_MAGIC     0x67446698u
#define NBD_STRUCTURED_MAGIC 0x668e33efu

#define NBD_DEFAULT_PORT      "10809"
#define NBD_MAX_STRING_BYTES  4096u
#define NBD_MAX_REQUEST_BYTES (32u * 1024 * 1024) /* of data in one request or reply */

/* --- negotiation --- */

enum nbd_handshake_flags { /* the server's and, with the same values, the client's */
                           NBD_FIXED_NEWSTYLE = 1u << 0,
                           NBD_NO_ZEROES = 1u << 1,
};

enum nbd_transmission_flags {
    NBD_HAS_FLAGS = 1u << 0,
    NBD_READ_ONLY = 1u << 1,
    NBD_SEND_FLUSH = 1u << 2,
    NBD_SEND_FUA = 1u << 3,
    NBD_ROTATIONAL = 1u << 4,
    NBD_SEND_TRIM = 1u << 5,
    NBD_SEND_WRITE_ZEROES = 1u << 6,
    NBD_SEND_DF = 1u << 7,
    NBD_CAN_MULTI_CONN = 1u << 8,
    NBD_SEND_RESIZE = 1u << 9,
    NBD_SEND_CACHE = 1u << 10,
    NBD_SEND_FAST_ZERO = 1u << 11,
};

enum nbd_option {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
};

#define NBD_REP_ERROR_BIT 0x80000000u

enum nbd_option_reply {
    NBD_REP_ACK = 1,
    NBD_REP_SERVER = 2,
    NBD_REP_INFO = 3,
    NBD_REP_META_CONTEXT = 4,
    NBD_REP_ERR_UNSUP = NBD_REP_ERROR_BIT + 1,
    NBD_REP_ERR_POLICY = NBD_REP_ERROR_BIT + 2,
    NBD_REP_ERR_INVALID = NBD_REP_ERROR_BIT + 3,
    NBD_REP_ERR_PLATFORM = NBD_REP_ERROR_BIT + 4,
    NBD_REP_ERR_TLS_REQD = NBD_REP_ERROR_BIT + 5,
    NBD_REP_ERR_UNKNOWN = NBD_REP_ERROR_BIT + 6,
    NBD_REP_ERR_SHUTDOWN = NBD_REP_ERROR_BIT + 7,
    NBD_REP_ERR_BLOCK_SIZE_REQD = NBD_REP_ERROR_BIT + 8,
    NBD_REP_ERR_TOO_BIG = NBD_REP_ERROR_BIT + 9,
};

enum nbd_info_type {
    NBD_INFO_EXPORT = 0,
    NBD_INFO_NAME = 1,
    NBD_INFO_DESCRIPTION = 2,
    NBD_INFO_BLOCK_SIZE = 3,
};

/* The server's first words: magic, IHAVEOPT, flags. */
#define NBD_GREETING_BYTES 18u
void nbd_greeting_encode(uint8_t *out, uint16_t handshake_flags);
int nbd_greeting_decode(const uint8_t *bytes, uint16_t *ret_handshake_flags);

#define NBD_CLIENT_FLAGS_BYTES 4u

#define NBD_OPTION_BYTES 16u
struct nbd_option_header {
    uint32_t option; /* enum nbd_option, or anything */
    uint32_t length_bytes;
};
void nbd_option_encode(uint8_t *out, const struct nbd_option_header *header);
int nbd_option_decode(const uint8_t *bytes, struct nbd_option_header *ret_header);

#define NBD_OPTION_REPLY_BYTES 20u
struct nbd_option_reply_header {
    uint32_t option;
    uint32_t type; /* enum nbd_option_reply, or anything */
    uint32_t length_bytes;
};
void nbd_option_reply_encode(uint8_t *out, const struct nbd_option_reply_header *header);
int nbd_option_reply_decode(const uint8_t *bytes, struct nbd_option_reply_header *ret_header);

struct nbd_text {
    const char *bytes;
    size_t length_bytes;
};

/* A length and as many bytes, at most NBD_MAX_STRING_BYTES and without a zero among them. */
bool nbd_text_take(struct be_cursor *cursor, struct nbd_text *ret_text);

/* Payload of OPT_INFO and OPT_GO. */
struct nbd_go {
    struct nbd_text name;
    struct be_cursor infos; /* big-endian 16 bit numbers, whole ones: be16_take() them */
};
int nbd_go_decode(const uint8_t *bytes, size_t length_bytes, struct nbd_go *ret_go);
/* Bytes needed for a name and infos; nbd_go_encode() fills so many. */
size_t nbd_go_bytes(size_t name_bytes, size_t info_count);
void nbd_go_encode(uint8_t *out, const struct nbd_text *name, const uint16_t *infos,
                   size_t info_count);

/* Payload of OPT_LIST_META_CONTEXT and OPT_SET_META_CONTEXT. The decoder has checked every query:
 * nbd_text_take() `query_count` times from `queries`. */
struct nbd_meta_request {
    struct nbd_text name;
    uint32_t query_count;
    struct be_cursor queries;
};
int nbd_meta_request_decode(const uint8_t *bytes, size_t length_bytes,
                            struct nbd_meta_request *ret_request);
size_t nbd_meta_request_bytes(const struct nbd_text *name, const struct nbd_text *queries,
                              size_t query_count);
void nbd_meta_request_encode(uint8_t *out, const struct nbd_text *name,
                             const struct nbd_text *queries, size_t query_count);

/* Payload of REP_META_CONTEXT: an id, then the name (not zero-terminated). */
#define NBD_META_REPLY_BYTES 4u
struct nbd_meta_reply {
    uint32_t id;
    struct nbd_text name;
};
int nbd_meta_reply_decode(const uint8_t *bytes, size_t length_bytes,
                          struct nbd_meta_reply *ret_reply);

/* Payload of REP_SERVER: a name with its length, then a description. */
struct nbd_server_reply {
    struct nbd_text name, description;
};
int nbd_server_reply_decode(const uint8_t *bytes, size_t length_bytes,
                            struct nbd_server_reply *ret_reply);

/* Payload of REP_INFO. */
#define NBD_INFO_BYTES            2u
#define NBD_INFO_EXPORT_BYTES     12u
#define NBD_INFO_BLOCK_SIZE_BYTES 14u
struct nbd_info {
    uint16_t type; /* enum nbd_info_type, or anything (then `text` holds what follows) */
    uint64_t size_bytes;
    uint16_t transmission_flags;
    uint32_t minimum_bytes, preferred_bytes, maximum_bytes;
    struct nbd_text text;
};
void nbd_info_export_encode(uint8_t *out, uint64_t size_bytes, uint16_t transmission_flags);
void nbd_info_block_size_encode(uint8_t *out, uint32_t minimum_bytes, uint32_t preferred_bytes,
                                uint32_t maximum_bytes);
int nbd_info_decode(const uint8_t *bytes, size_t length_bytes, struct nbd_info *ret_info);

/* The answer to OPT_EXPORT_NAME: size, flags and, without NO_ZEROES, 124 zeroes. */
#define NBD_EXPORT_NAME_REPLY_BYTES 10u
#define NBD_EXPORT_NAME_ZEROES      124u
void nbd_export_name_reply_encode(uint8_t *out, uint64_t size_bytes, uint16_t transmission_flags);

/* --- transmission --- */

enum nbd_command {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

enum nbd_command_flags {
    NBD_CMD_FLAG_FUA = 1u << 0,
    NBD_CMD_FLAG_NO_HOLE = 1u << 1,
    NBD_CMD_FLAG_DF = 1u << 2,
    NBD_CMD_FLAG_REQ_ONE = 1u << 3,
    NBD_CMD_FLAG_FAST_ZERO = 1u << 4,
};

#define NBD_REQUEST_BYTES 28u
struct nbd_request {
    uint16_t flags;
    uint16_t type; /* enum nbd_command, or anything */
    uint64_t cookie;
    uint64_t offset_bytes;
    uint32_t length_bytes;
};
void nbd_request_encode(uint8_t *out, const struct nbd_request *request);
int nbd_request_decode(const uint8_t *bytes, struct nbd_request *ret_request);
/* For logs: "read", "write", ...; "unknown" for others. */
const char *nbd_command_name(uint16_t type);

#define NBD_SIMPLE_REPLY_BYTES 16u
struct nbd_simple_reply {
    uint32_t error; /* on the wire's side: see nbd_error_from_errno() */
    uint64_t cookie;
};
void nbd_simple_reply_encode(uint8_t *out, const struct nbd_simple_reply *reply);

enum nbd_chunk_flags { NBD_CHUNK_DONE = 1u << 0 };

enum nbd_chunk_type {
    NBD_CHUNK_NONE = 0,
    NBD_CHUNK_OFFSET_DATA = 1,
    NBD_CHUNK_OFFSET_HOLE = 2,
    NBD_CHUNK_BLOCK_STATUS = 5,
    NBD_CHUNK_ERROR = 32769,
    NBD_CHUNK_ERROR_OFFSET = 32770,
};
static inline bool nbd_chunk_is_error(uint16_t type)
{
    return (type & 0x8000) != 0;
}

#define NBD_CHUNK_BYTES 20u
struct nbd_chunk {
    uint16_t flags; /* enum nbd_chunk_flags */
    uint16_t type;  /* enum nbd_chunk_type, or anything */
    uint64_t cookie;
    uint32_t length_bytes;
};
void nbd_chunk_encode(uint8_t *out, const struct nbd_chunk *chunk);

/* A reply of either kind, told apart by its magic. The first NBD_SIMPLE_REPLY_BYTES say which:
 * nbd_reply_bytes() returns how long the header is, or -EPROTO. */
struct nbd_reply {
    bool structured;
    struct nbd_simple_reply simple;
    struct nbd_chunk chunk;
};
int nbd_reply_bytes(const uint8_t *bytes);
int nbd_reply_decode(const uint8_t *bytes, struct nbd_reply *ret_reply);

/* Payloads of chunks. OFFSET_DATA: an offset, then data. */
#define NBD_OFFSET_DATA_BYTES 8u
#define NBD_OFFSET_HOLE_BYTES 12u
struct nbd_offset_hole {
    uint64_t offset_bytes;
    uint32_t length_bytes;
};
void nbd_offset_hole_encode(uint8_t *out, const struct nbd_offset_hole *hole);
int nbd_offset_hole_decode(const uint8_t *bytes, size_t length_bytes,
                           struct nbd_offset_hole *ret_hole);

/* ERROR and ERROR_OFFSET: the error, a text, and for the second an offset. */
#define NBD_ERROR_BYTES 6u
struct nbd_error {
    uint32_t error;
    struct nbd_text text;
    uint64_t offset_bytes; /* ERROR_OFFSET */
};
/* Without a text. */
void nbd_error_encode(uint8_t *out, uint32_t error);
int nbd_error_decode(uint16_t chunk_type, const uint8_t *bytes, size_t length_bytes,
                     struct nbd_error *ret_error);

/* BLOCK_STATUS: a context's id, then descriptors. */
#define NBD_BLOCK_STATUS_BYTES 4u
#define NBD_DESCRIPTOR_BYTES   8u
enum nbd_extent_state { /* base:allocation */
                        NBD_STATE_HOLE = 1u << 0,
                        NBD_STATE_ZERO = 1u << 1,
};
enum nbd_dirty_state { NBD_STATE_DIRTY = 1u << 0 }; /* qemu:dirty-bitmap:NAME */
struct nbd_descriptor {
    uint32_t length_bytes;
    uint32_t status;
};
struct nbd_block_status {
    uint32_t context_id;
    size_t count;                 /* of descriptors; at least one */
    struct be_cursor descriptors; /* nbd_descriptor_take() them */
};
void nbd_descriptor_encode(uint8_t *out, const struct nbd_descriptor *descriptor);
bool nbd_descriptor_take(struct be_cursor *cursor, struct nbd_descriptor *ret_descriptor);
int nbd_block_status_decode(const uint8_t *bytes, size_t length_bytes,
                            struct nbd_block_status *ret_status);

#define NBD_CONTEXT_ALLOCATION   "base:allocation"
#define NBD_CONTEXT_DEPTH        "qemu:allocation-depth"
#define NBD_CONTEXT_DIRTY_PREFIX "qemu:dirty-bitmap:"

/*
 * Ours: not asked for but told. By a query of this name, 16 lower-case hexadecimal digits behind the
 * sign, a client says which daemon's run it belongs to; a server that does not know the name space
 * ignores it, as the protocol has it.
 */
#define NBD_INSTANCE_PREFIX "x-blockstep:instance="
#define NBD_INSTANCE_BYTES  (sizeof(NBD_INSTANCE_PREFIX) + 16) /* with the final zero */
void nbd_instance_encode(char text[NBD_INSTANCE_BYTES], uint64_t instance);
/* False: the query is another one. */
bool nbd_instance_decode(const struct nbd_text *query, uint64_t *ret_instance);

/* 0 -> 0; a negative errno -> the wire's number, EINVAL's for what the protocol does not have... */
uint32_t nbd_error_from_errno(int code);
/* ... and back: a negative errno, -EINVAL for what we do not know, as the protocol asks. */
int nbd_error_to_errno(uint32_t error);

#endif
