-- The first version, as it is in use. Ids are text.

CREATE TABLE auth_users (
    id text PRIMARY KEY,
    email text NOT NULL UNIQUE,
    name text,
    created_at timestamptz NOT NULL DEFAULT now());

CREATE TABLE platform_workspaces (
    id text PRIMARY KEY,
    name text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now());

CREATE TABLE platform_workspace_members (
    id text PRIMARY KEY,
    workspace_id text NOT NULL,
    user_id text NOT NULL,
    role text NOT NULL DEFAULT 'member',
    status text NOT NULL DEFAULT 'active',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, user_id));

CREATE TABLE platform_permissions (
    id text PRIMARY KEY,
    member_id text NOT NULL,
    capability text NOT NULL);

CREATE TABLE platform_managed_users (
    id text PRIMARY KEY,
    workspace_id text NOT NULL,
    display_name text NOT NULL,
    avatar_public_id text,
    user_key text NOT NULL,
    status text NOT NULL DEFAULT 'active',
    profile_id text,
    identity_public_key text,
    identity_key_fingerprint text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workspace_id, user_key));
CREATE UNIQUE INDEX ON platform_managed_users (workspace_id, profile_id, identity_key_fingerprint)
    WHERE profile_id IS NOT NULL AND identity_key_fingerprint IS NOT NULL;

CREATE TABLE platform_books (
    id text PRIMARY KEY,
    workspace_id text NOT NULL,
    managed_user_id text,
    name text NOT NULL,
    status text NOT NULL DEFAULT 'active',
    current_version bigint NOT NULL DEFAULT 0,
    collection_id text DEFAULT 'primary',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now());

CREATE TABLE platform_book_snapshots (
    id text PRIMARY KEY,
    book_id text NOT NULL,
    version bigint NOT NULL,
    cipher_object_key text NOT NULL,
    cipher_sha256 text NOT NULL,
    wrapped_dek text NOT NULL,
    ledger_head text,
    payload_json jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (book_id, version));

CREATE TABLE platform_audit_events (
    id text PRIMARY KEY,
    workspace_id text NOT NULL,
    actor_user_id text,
    event_type text NOT NULL,
    payload jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now());
