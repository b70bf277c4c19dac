-- Part: what every script that moves messages shares.
-- A message in transit is written as three lines: its queue, the list that it came from, and its bytes, which no script
-- ever reads or rewrites. A lease is one such value in the hash of its holder, under a number; `leased:<queue>` has its
-- name (`<holder>:<number>`) by the time of the fetch, or at infinity once its task has started.
-- `base` is how the names of the fleet's keys begin, `again` the hash of messages that had to be delivered again.
local FOREVER = 86400 -- s; how long a lost holder's late acknowledgement is waited for

local function clock()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1e6
end

local function stamp(seconds)
  return string.format('%.6f', seconds)
end

local function lines_of(value)
  local first = string.find(value, '\n', 1, true)
  local second = string.find(value, '\n', first + 1, true)
  return string.sub(value, 1, first - 1), string.sub(value, first + 1, second - 1), string.sub(value, second + 1)
end

--#include dead

--#include wake

-- Put a message back to the front of its list, where the next fetch takes it.
local function put_back(base, value)
  local queue, list, raw = lines_of(value)
  redis.call('RPUSH', list, raw)
  wake(base, queue)
end

local function delay(base, due, queue, value, at)
  redis.call('ZADD', base .. 'delayed:' .. queue, at, value)
  redis.call('ZADD', due, 'LT', at, queue)
end

local function move_delayed(base, due, queue, now, limit)
  local delayed = base .. 'delayed:' .. queue
  local values = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, limit)
  for _, value in ipairs(values) do
    local _, list, raw = lines_of(value)
    redis.call('LPUSH', list, raw)
    redis.call('ZREM', delayed, value)
  end
  if #values > 0 then wake(base, queue) end
  local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
  if first[2] then redis.call('ZADD', due, first[2], queue) else redis.call('ZREM', due, queue) end
  return #values
end

-- Move messages that are due to their queues, in the order of their times, `limit` of them at most. What stands in `due`
-- behind a line feed is no queue but a breaker, whose messages `let_out` moves.
local function move_due(base, due, now, limit, let_out)
  local moved = 0
  for _, queue in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, 20)) do
    if string.sub(queue, 1, 1) == '\n' then
      let_out(base, string.sub(queue, 2), now)
    elseif moved < limit then
      moved = moved + move_delayed(base, due, queue, now, limit - moved)
    end
  end
  return moved
end

local function hold(base, holder, number, queue, value, at)
  redis.call('HSET', base .. 'leases:' .. holder, number, value)
  redis.call('ZADD', base .. 'leased:' .. queue, at, holder .. ':' .. number)
end

-- End a lease. Returns its value, and whether its task had started; nothing when the lease was no longer the holder's.
local function take(base, holder, number, queue)
  local key, member = base .. 'leased:' .. queue, holder .. ':' .. number
  local leases = base .. 'leases:' .. holder
  local value, score = redis.call('HGET', leases, number), redis.call('ZSCORE', key, member)
  redis.call('ZREM', key, member)
  if not value then return nil, false end
  redis.call('HDEL', leases, number)
  return value, score == 'inf'
end

-- End a lease by an act with its value: first the act, so that a command that the server refuses loses nothing.
local function move(base, holder, number, queue, act)
  local value = redis.call('HGET', base .. 'leases:' .. holder, number)
  if value then act(value) end
  take(base, holder, number, queue)
  return value
end

-- Remember that a message whose task may have run goes out again, and under which lease it did so before.
-- Returns its digest.
local function count_again(base, again, holder, number, value)
  local digest = redis.sha1hex(value)
  redis.call('HINCRBY', again, digest, 1)
  redis.call('EXPIRE', again, 7 * FOREVER)
  redis.call('SET', base .. 'moved:' .. holder .. ':' .. number, digest, 'EX', FOREVER)
  return digest
end

-- A message is done with, whose lease was taken back meanwhile: its other copy is marked, and goes the same way unless
-- it runs. `verdict` is '1' for one that is to be dropped, else why it's a dead letter, as `condemn` takes it.
local function settle_elsewhere(base, again, holder, number, verdict)
  local moved = base .. 'moved:' .. holder .. ':' .. number
  local digest = redis.call('GET', moved)
  if digest then
    redis.call('DEL', moved)
    if redis.call('HEXISTS', again, digest) == 1 then
      redis.call('SET', base .. 'settled:' .. digest, verdict, 'EX', FOREVER)
    end
  end
end

local function settle(base, again, holder, number, queue)
  local value = take(base, holder, number, queue)
  if not value then return settle_elsewhere(base, again, holder, number, '1') end
  if redis.call('EXISTS', again) == 0 then return end
  local digest = redis.sha1hex(value)
  if redis.call('HEXISTS', again, digest) == 1 then forget_deliveries(base, again, digest) end
end

-- Two parts of a detail, in lines: a reason or an agent, and a text.
local function parts_of(detail)
  return string.match(detail, '^([^\n]*)\n?(.*)$')
end

-- A message is a dead letter from here on; `detail` holds the reason and the error.
local function condemn(base, again, holder, number, queue, detail)
  local reason, error_text = parts_of(detail)
  local value = move(base, holder, number, queue, function(value) bury(base, value, reason, error_text) end)
  if not value then settle_elsewhere(base, again, holder, number, detail) end
end

-- Give leases back, newest first, so that the oldest is in front; at most `limit`, and only those whose task has not
-- started unless `all`. `lost` tells that the holder died with them. Returns their numbers, and how many are left.
local function give_back(base, again, holder, all, limit, lost)
  local numbers = redis.call('HKEYS', base .. 'leases:' .. holder)
  table.sort(numbers, function(a, b) return tonumber(a) > tonumber(b) end)
  local given = {}
  for _, number in ipairs(numbers) do
    if #given == limit then break end
    local value = redis.call('HGET', base .. 'leases:' .. holder, number)
    local queue, _, raw = lines_of(value)
    local started = redis.call('ZSCORE', base .. 'leased:' .. queue, holder .. ':' .. number) == 'inf'
    if all or not started then
      if started then
        local digest = count_again(base, again, holder, number, value)
        if lost then lose_with_agent(base, holder, digest, raw) end
      end
      put_back(base, value)
      take(base, holder, number, queue)
      given[#given + 1] = number
    end
  end
  return given, #numbers - #given
end

-- Take back what a dead holder held, at most `limit` leases. Returns how many were taken back, and how many are left.
local function reclaim(base, again, holder, limit)
  local given, left = give_back(base, again, holder, true, limit, true)
  if left == 0 then redis.call('HDEL', base .. 'sessions', holder) end
  return #given, left
end

-- What a holder has to say of its leases, from ARGV[at] on: how many there are, then four words each: kind, number,
-- queue, detail. Saying one twice does no harm. Returns the place in ARGV behind them.
local NEWS = {
  settle = settle,
  condemn = condemn,
  orphaned = function(base, again, holder, number, queue, detail) -- the process that it ran in was lost
    move(base, holder, number, queue, function(value)
      local agent, note = parts_of(detail)
      remember_delivery(base, count_again(base, again, holder, number, value), 'process', agent, note)
      put_back(base, value)
    end)
  end,
  release = function(base, again, holder, number, queue) -- its task may have run
    move(base, holder, number, queue, function(value)
      count_again(base, again, holder, number, value)
      put_back(base, value)
    end)
  end,
  ['return'] = function(base, _, holder, number, queue)
    move(base, holder, number, queue, function(value) put_back(base, value) end)
  end,
  claim = function(base, _, holder, number, queue) -- as good as started
    redis.call('ZADD', base .. 'leased:' .. queue, 'XX', '+inf', holder .. ':' .. number)
  end,
  keep = function(base, _, holder, number, queue) -- not started, and not to be taken over
    redis.call('ZADD', base .. 'leased:' .. queue, 'XX', 'GT', '1e12', holder .. ':' .. number)
  end,
  delay = function(base, _, holder, number, queue, at)
    move(base, holder, number, queue, function(value) delay(base, base .. 'due', queue, value, at) end)
  end,
}

local function take_in_news(base, again, holder, at)
  local last = at + 4 * tonumber(ARGV[at])
  for i = at + 1, last, 4 do NEWS[ARGV[i]](base, again, holder, ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]) end
  return last + 1
end
