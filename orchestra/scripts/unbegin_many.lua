-- Tasks that had begun with others, and whose turn has not come, go back to the front of their queues, oldest first.
-- ARGV: 1 how our keys begin, 2 holder, 3 the records' ttl in ms, then for each task, newest first: number of its lease,
--       queue, id, attempt.
--#include leases
--#include record
local base, now = ARGV[1], redis_time()
for i = 4, #ARGV, 4 do
  local number, queue, id, attempt = unpack(ARGV, i, i + 3)
  if move(base, ARGV[2], number, queue, function(value) put_back(base, value) end) then
    note_wait(base .. 'task:' .. id, now, attempt, 'given back before its turn', ARGV[3])
  end
end
