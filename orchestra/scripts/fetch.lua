-- Pop messages and lease them to one holder, in one step, so that at no moment a message is in no key.
-- KEYS: 1 the holders by beat, 2 queues with delayed messages, and breakers, 3 messages that were delivered again, 4 sessions, then
--       the lists to look into, in their order.
-- ARGV: 1 how our keys begin, 2 holder, 3 its session, 4 number of the first lease, 5 messages to fetch at most,
--       6 of these to take over at most, 7 s after which a lease may be taken over, 8 '1' where nothing is taken over
--       from the holder, 9 news of leases ..., then the number of queues whose tasks all share a breaker, and each with its
--       breaker ..., then for each list its queue, whether it's popped plainly ('1'), and up to how many messages in all it
--       may fill the fetch.
-- Messages that wait at a busy agent, their task not started, are taken over when nothing else is found.
-- Returns {} to a session that has been replaced, else {Redis's time, the time when the next delayed message is due
-- ('': none), whether more may be had at once, then for each message: number of its lease, queue, bytes, how often it was
-- delivered again, or in a text: how often, how many processes and agents were lost with it since, and how often it was replayed}.
--#include leases
--#include breakers
local base, holder, session, number, left = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local again = KEYS[3]
local at = take_in_news(base, again, holder, 9)
local guards, guarded = {}, tonumber(ARGV[at])
for i = at + 1, at + 2 * guarded, 2 do guards[ARGV[i]] = ARGV[i + 1] end
at = at + 1 + 2 * guarded
local standing = tonumber(redis.call('HGET', KEYS[4], holder) or '0')
if standing > session then return {} end -- a connection that this holder has given up: nobody would read the answer
if standing < session then
  redis.call('HSET', KEYS[4], holder, session)
  give_back(base, again, holder, false, -1) -- fetched by the connection that was lost
end
local now = clock()
redis.call('ZADD', KEYS[1], 'NX', stamp(now), holder)
move_due(base, KEYS[2], now, 100, let_out_due)

local reply = {stamp(now), '', '0'}
local any_again = redis.call('EXISTS', again) == 1

-- What is to be told of a message's former deliveries; nothing for a message that is done with.
local function told_of(value)
  if not any_again then return 0 end
  local digest = redis.sha1hex(value)
  local times = redis.call('HGET', again, digest)
  if not times then return 0 end
  local verdict = redis.call('GET', base .. 'settled:' .. digest)
  if verdict then
    if verdict == '1' then forget_deliveries(base, again, digest) else bury(base, value, parts_of(verdict)) end
    return nil
  end
  local deliveries = redis.call('HGET', base .. 'deliveries', digest)
  if not deliveries then return tonumber(times) end
  return string.format('%d %d %d %d', times, losses_in(deliveries))
end

local function deliver(queue, value, raw, plainly)
  local told = told_of(value)
  if not told then return end
  if not plainly then hold(base, holder, number, queue, value, ARGV[8] == '1' and '1e12' or stamp(now)) end
  local n = #reply
  reply[n + 1], reply[n + 2], reply[n + 3], reply[n + 4] = number, queue, raw, told
  number, left = number + 1, left - 1
end

-- The words of a list: its queue, whether it's popped plainly, and up to how many messages it may fill the fetch.
local function words_of(i)
  local first = at + 3 * (i - 5)
  return ARGV[first], ARGV[first + 1] == '1', tonumber(ARGV[first + 2])
end

-- How many messages may be fetched from a queue now: of one whose tasks all wait for a breaker, as many as may be tried.
local allowed = {}
local function allowance(queue)
  local name = guards[queue]
  if not name or redis.call('EXISTS', base .. 'mixed:' .. queue) == 1 then return math.huge end
  if not allowed[name] then
    local breaker = breaker_of(base, name)
    local free = breaker.state == 'closed' and math.huge or free_places(base, breaker, now) - on_the_way(base, breaker, now, 'handed')
    allowed[name] = math.max(0, free)
  end
  return allowed[name]
end

local function count_handed(queue, count)
  local name = guards[queue]
  if not allowed[name or ''] or allowed[name] == math.huge then return end
  allowed[name] = allowed[name] - count
  let_go(base, breaker_of(base, name), now, 'handed', count)
end

local looked_into, passed_by = 5, {}
while looked_into <= #KEYS and left > 0 do
  local list = KEYS[looked_into]
  local queue, plainly, most = words_of(looked_into)
  local room = math.min(left, most - (#reply - 3) / 4)
  local wanted = math.min(room, allowance(queue))
  local raws = wanted > 0 and redis.call('RPOP', list, wanted)
  for _, raw in ipairs(raws or {}) do deliver(queue, queue .. '\n' .. list .. '\n' .. raw, raw, plainly) end
  if room <= 0 then passed_by[#passed_by + 1] = looked_into end
  if raws then count_handed(queue, #raws) else looked_into = looked_into + 1 end
end
if left == 0 then
  reply[3] = '1'
  for i = looked_into, #KEYS do passed_by[#passed_by + 1] = i end
end
for n = 1, math.min(#passed_by, 32) do -- a bound, for what this costs
  local queue = words_of(passed_by[n])
  if redis.call('LLEN', KEYS[passed_by[n]]) > 0 and allowance(queue) > 0 then wake(base, queue) end
end

local free = #reply == 3 and tonumber(ARGV[6]) or 0
if free > 0 then
  local seen, before = {}, stamp(now - tonumber(ARGV[7]))
  for i = 5, #KEYS do
    local queue, plainly = words_of(i)
    local names = (seen[queue] or plainly) and {} or redis.call('ZRANGEBYSCORE', base .. 'leased:' .. queue, '-inf', before, 'LIMIT', 0, free)
    seen[queue] = true
    for _, name in ipairs(names) do
      local other, its_number = string.match(name, '^(.*):(%d+)$')
      if other ~= holder and free > 0 then
        local value = take(base, other, its_number, queue)
        if value then
          local _, _, raw = lines_of(value)
          deliver(queue, value, raw, false)
          free = free - 1
          reply[3] = '1' -- there may be more of it, for which nobody is woken
        end
      end
    end
  end
end

local next_due = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if next_due[2] then reply[2] = next_due[2] end
return reply
