-- Rows of the first version: :accounts workspaces, and of everything what goes with them. Besides ordinary rows these, whatever the size:
--   a member without a workspace, and one without a user
--   fingerprints that several live managed users of one workspace have
--   books without a managed user, and one whose managed user is of another workspace
--   a snapshot without a book, and those of a book that is not carried
--   collections that are blank
INSERT INTO auth_users SELECT 'usr_' || i, 'user' || i || '@example.com', 'User ' || i FROM generate_series(1, :accounts * 2) AS i;

INSERT INTO platform_workspaces
SELECT 'wsp_' || i, 'Workspace ' || i, timestamptz '2024-01-01' + i * interval '1 minute', timestamptz '2025-01-01' + i * interval '1 minute'
  FROM generate_series(1, :accounts) AS i;

INSERT INTO platform_workspace_members (id, workspace_id, user_id, role, created_at, updated_at)
SELECT 'mem_' || i, 'wsp_' || (1 + i % :accounts), 'usr_' || i, CASE WHEN i <= :accounts THEN 'owner' ELSE 'member' END,
       timestamptz '2024-02-01' + i * interval '1 minute', timestamptz '2025-02-01'
  FROM generate_series(1, :accounts * 2) AS i;
INSERT INTO platform_workspace_members (id, workspace_id, user_id) VALUES ('mem_astray', 'wsp_gone', 'usr_1'), ('mem_nobody', 'wsp_1', 'usr_gone');

INSERT INTO platform_permissions SELECT 'per_' || i, 'mem_' || i, 'read' FROM generate_series(1, :accounts * 2) AS i;

-- Three of a workspace; the third has the first one's fingerprint in every tenth workspace, and is younger.
INSERT INTO platform_managed_users (id, workspace_id, display_name, user_key, status, profile_id, identity_public_key, identity_key_fingerprint, created_at, updated_at)
SELECT format('mgd_%s_%s', w, n), 'wsp_' || w, format('Person %s of %s', n, w), 'key_' || n,
       CASE WHEN w % 7 = 0 AND n = 2 THEN 'deleted' ELSE 'active' END, 'prf_' || n, 'pub_' || w || n,
       CASE WHEN w % 10 = 0 AND n = 3 THEN format('fp_%s_1', w) WHEN w % 5 = 1 AND n = 2 THEN NULL ELSE format('fp_%s_%s', w, n) END,
       timestamptz '2024-03-01' + w * interval '1 minute' + n * interval '1 second', timestamptz '2025-03-01'
  FROM generate_series(1, :accounts) AS w, generate_series(1, 3) AS n;

INSERT INTO platform_books (id, workspace_id, managed_user_id, name, status, current_version, collection_id, created_at, updated_at)
SELECT format('bok_%s_%s', w, n), 'wsp_' || w, format('mgd_%s_%s', w, n), format('Book %s of %s', n, w),
       CASE WHEN w % 9 = 0 AND n = 2 THEN 'deleted' ELSE 'active' END, 3, CASE w % 3 WHEN 0 THEN '' WHEN 1 THEN 'primary' ELSE 'travel' END,
       timestamptz '2024-04-01' + w * interval '1 minute', timestamptz '2025-04-01'
  FROM generate_series(1, :accounts) AS w, generate_series(1, 3) AS n;
INSERT INTO platform_books (id, workspace_id, managed_user_id, name) VALUES
    ('bok_orphan', 'wsp_1', NULL, 'Nobody''s'), ('bok_gone', 'wsp_1', 'mgd_gone', 'Of somebody who is gone'), ('bok_other', 'wsp_1', 'mgd_2_1', 'Of another workspace''s');

INSERT INTO platform_book_snapshots (id, book_id, version, cipher_object_key, cipher_sha256, wrapped_dek, ledger_head, payload_json, created_at)
SELECT format('snp_%s_%s_%s', w, n, v), format('bok_%s_%s', w, n), v, format('objects/%s/%s/%s', w, n, v), md5(format('%s-%s-%s', w, n, v)),
       md5('dek' || w), 'head_' || v, jsonb_build_object('pages', v * 10, 'title', 'Book ' || n), timestamptz '2024-05-01' + v * interval '1 day'
  FROM generate_series(1, :accounts) AS w, generate_series(1, 3) AS n, generate_series(1, 3) AS v;
INSERT INTO platform_book_snapshots (id, book_id, version, cipher_object_key, cipher_sha256, wrapped_dek) VALUES
    ('snp_astray', 'bok_never', 1, 'objects/astray', 'x', 'x'), ('snp_orphan', 'bok_orphan', 1, 'objects/orphan', 'x', 'x');

INSERT INTO platform_audit_events (id, workspace_id, actor_user_id, event_type, payload, created_at)
SELECT 'evt_' || i, 'wsp_' || (1 + i % :accounts), 'usr_' || (1 + i % (:accounts * 2)), CASE i % 3 WHEN 0 THEN 'login' ELSE 'book.opened' END,
       jsonb_build_object('n', i), timestamptz '2024-06-01' + i * interval '1 second'
  FROM generate_series(1, :accounts * 20) AS i;
