-- Part: notes of tasks that are sent when others have come to their ends; until then they have no record.
-- A note is a hash: `task`, `link` ('chain' or 'chord'), and `after:<id>` for each task that is waited for.
-- ARGV from `at` on: for each follower its id, its task's name, the id of the task that it waits for, the link.
local function note_followers(base, ttl_ms, at)
  for i = at, #ARGV, 4 do
    local key = base .. 'awaits:' .. ARGV[i]
    redis.call('HSET', key, 'task', ARGV[i + 1], 'link', ARGV[i + 3], 'after:' .. ARGV[i + 2], '')
    redis.call('PEXPIRE', key, ttl_ms)
  end
end
