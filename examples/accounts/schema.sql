-- The second version, beside the first one in the same database.

CREATE TABLE accounts (
    id text PRIMARY KEY,
    name text NOT NULL,
    status text NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL);

CREATE TABLE account_members (
    id text PRIMARY KEY,
    account_id text NOT NULL REFERENCES accounts,
    user_id text NOT NULL,  -- refers to auth_users once the first version is gone: until then that one may still delete users
    role text NOT NULL,
    status text NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    UNIQUE (account_id, user_id));

CREATE TABLE identities (
    id text PRIMARY KEY,
    account_id text NOT NULL REFERENCES accounts,
    display_name text NOT NULL,
    avatar_public_id text,
    user_key text NOT NULL,
    status text NOT NULL,
    profile_id text,
    identity_public_key text,
    identity_key_fingerprint text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    UNIQUE (account_id, id),
    UNIQUE (account_id, user_key));
CREATE UNIQUE INDEX one_live_identity ON identities (account_id, identity_key_fingerprint)
    WHERE identity_key_fingerprint IS NOT NULL AND status <> 'deleted';

CREATE TABLE pixbooks (
    id text PRIMARY KEY,
    account_id text NOT NULL REFERENCES accounts,
    identity_id text NOT NULL,
    name text NOT NULL,
    status text NOT NULL,
    current_version bigint NOT NULL,
    collection_id text NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    FOREIGN KEY (account_id, identity_id) REFERENCES identities (account_id, id));
CREATE UNIQUE INDEX one_live_pixbook ON pixbooks (identity_id, collection_id) WHERE status <> 'deleted';

CREATE TABLE pixbook_snapshots (
    id text PRIMARY KEY,
    pixbook_id text NOT NULL REFERENCES pixbooks,
    version bigint NOT NULL,
    cipher_object_key text NOT NULL,
    cipher_sha256 text NOT NULL,
    wrapped_dek text NOT NULL,
    ledger_head text,
    payload_json jsonb,
    created_at timestamptz NOT NULL,
    UNIQUE (pixbook_id, version));

CREATE TABLE audit_events (
    id text PRIMARY KEY,
    account_id text NOT NULL,
    actor_user_id text,
    event_type text NOT NULL,
    payload jsonb NOT NULL,
    created_at timestamptz NOT NULL);
CREATE INDEX ON audit_events (account_id, created_at);
