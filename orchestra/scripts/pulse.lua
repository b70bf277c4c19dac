-- Say that a lease holder lives; take back what dead ones held, and move what has become due.
-- Who is dead is decided by Redis's clock and by Redis's own record of beats. When nobody has beaten for a while it was
-- the server that was away, or everybody's way to it: then all get the time that makes one count as lost to come back.
-- KEYS: 1 the holders by beat, 2 the record of beats, 3 agents by beat, 4 this agent's hash, 5 queues with delayed
--       messages, and breakers, by the time when something is to be done, 6 messages that were delivered again.
-- ARGV: 1 how our keys begin, 2 holder, 3 s of silence after which a holder is lost, 4 the agent's name ('': no agent),
--       5 messages to move at most. Returns the number of messages taken back, and of those that became due.
--#include leases
--#include breakers
local base, holder, lost_after, limit = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[5])
local now = clock()
redis.call('ZADD', KEYS[1], stamp(now), holder)
forgive(base, holder)
if ARGV[4] ~= '' and redis.call('HGET', KEYS[4], 'instance') == holder then
  redis.call('ZADD', KEYS[3], stamp(now), ARGV[4])
end
local record = redis.call('HMGET', KEYS[2], 'last', 'quiet_until')
local last, quiet_until = tonumber(record[1] or ''), tonumber(record[2] or '') or 0
redis.call('HSET', KEYS[2], 'last', stamp(now))
if last and now < last then -- the clock was set back; a beat from the future would let a dead holder live until then
  for _, ahead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. stamp(now), '+inf')) do
    redis.call('ZADD', KEYS[1], stamp(now), ahead)
  end
end
if not last or now < last or now - last > lost_after / 2 then
  quiet_until = now + lost_after
  redis.call('HSET', KEYS[2], 'quiet_until', stamp(quiet_until))
end
local became_due = move_due(base, KEYS[5], now, limit, let_out_due)
local taken_back = 0
if now < quiet_until then return {taken_back, became_due} end
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. stamp(now - lost_after), 'LIMIT', 0, 10)) do
  local moved, left = reclaim(base, KEYS[6], dead, limit - taken_back)
  taken_back = taken_back + moved
  if left > 0 then break end
  redis.call('ZREM', KEYS[1], dead)
end
return {taken_back, became_due}
