-- Store a task's result, and advance the task's record: one step, one round trip.
-- KEYS: 1 the result, 2 the record.
-- ARGV: 1 the encoded result, 2 its ttl in s (0: none), 3 how a stored success begins, 4 to 10 as in advance.lua, and
--       where the task's lease ends with its result: 11 how our keys begin, 12 holder, 13 number of the lease, 14 queue,
--       and where its message becomes a dead letter: 15 the reason and the error, as `condemn` takes them.
--#include leases
--#include record
--#include results
local stored = store_result(KEYS[1], ARGV[1], ARGV[2], ARGV[3], KEYS[2], redis_time(), unpack(ARGV, 4, 10))
if ARGV[11] then -- last: a command that the server refuses must not cost the message
  local ending = stored and ARGV[15] and condemn or settle
  ending(ARGV[11], ARGV[11] .. 'redelivered', ARGV[12], ARGV[13], ARGV[14], ARGV[15])
end
return stored and 1 or 0
