-- A retry takes its place in the window in which it wishes to be due, or in the first later one that has room.
-- KEYS: 1 how the keys of first attempts, by window, begin; 2 how those of retries do.
-- ARGV: 1 the budget's ratio, 2 its floor in retries per second, 3 its window in ms, 4 when the retry wishes to be due,
--       in s from now.
-- Returns by how many s it's put off, and how many retries per second the budget allows now.
--#include record
--#include windows
local now, window_ms = tonumber(redis_time()), tonumber(ARGV[3])
local seconds = window_ms / 1000
local allowed = math.max(ARGV[2] * seconds, ARGV[1] * counted_lately(KEYS[1], now, window_ms))
local room = math.max(1, math.floor(allowed))

local function is_full(window)
  return counted_in_window(KEYS[2], window) >= room
end

-- In steps that double, and back by halves: a storm fills thousands of windows, one behind the other.
local function next_with_room(full)
  local step = 1
  while is_full(full + step) do
    full, step = full + step, step * 2
  end
  local free = full + step
  while free - full > 1 do
    local middle = math.floor((full + free) / 2)
    if is_full(middle) then full = middle else free = middle end
  end
  return free
end

local wish = now + ARGV[4]
local wished = window_at(wish, window_ms)
local window = is_full(wished) and next_with_room(wished) or wished
local before = count_in_window(KEYS[2], window, ((window + 1) * seconds - now) * 1000 + 1000)
local due = window > wished and (window + before / room) * seconds or wish
return {string.format('%.3f', due - wish), string.format('%.3f', room / seconds)}
