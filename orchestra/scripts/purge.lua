-- Delete dead letters. KEYS: 1 the letters by time. ARGV: 1 how our keys begin, then ids. Returns how many there were.
local purged = 0
for i = 2, #ARGV do
  redis.call('ZREM', KEYS[1], ARGV[i])
  purged = purged + redis.call('DEL', ARGV[1] .. 'dead:letter:' .. ARGV[i])
end
return purged
