-- Claim an effect of a task, unless it has happened. Every claim has a higher token than those before it, and only the
-- last one may carry the effect out.
-- KEYS: 1 the effect. ARGV: 1 how long it's remembered, in ms. Returns {'done', its value} or {'claimed', token}.
local value = redis.call('HGET', KEYS[1], 'value')
if value then return {'done', value} end
local token = redis.call('HINCRBY', KEYS[1], 'token', 1)
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return {'claimed', tostring(token)}
