package pgtenancy

// RegistryStep returns the statements that make a version of the registry of the one before.
func RegistryStep(version int) []string { return registrySteps[version] }
