package pgtenancy

// RLSRules are the rules of CheckRLS.
var RLSRules = rlsRules
